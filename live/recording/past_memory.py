"""Guest memory from a recording: as a step read it, or as it is known at an event.

`ReplayMemory` is what a replay reads: the pages that were read live in the same step and between the same
refreshes, and no others.  `StateMemory` is for everyone else: the memory at a step, exact for pages that the
step read, complete if a frame was taken there.  Other pages raise a `MemoryFault` that says so.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, InPlace, Segment
from live.recording import format
from live.recording.file import Recording, Step

UNRECORDED = "not recorded at this step: it was not read live"
_UNREADABLE = "could not be read live either"


class _Paged(InPlace):
    """Reads of any length over a function that returns the page of an address."""

    flat: memoryview | None = None
    description = "out of a recording"

    def __init__(self, segments: Sequence[Segment], page: Callable[[int], bytes]) -> None:
        self.segments = segments
        self._page = page
        self._starts = [segment.start for segment in segments]

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`."""
        offset = gpa & (PAGE_SIZE - 1)
        if gpa >= 0 and offset + length <= PAGE_SIZE:
            return self._in_ram(gpa)[offset : offset + length]
        if gpa < 0:
            raise MemoryFault(gpa)
        parts = []
        while length > 0:
            take = min(PAGE_SIZE - offset, length)
            parts.append(self._in_ram(gpa)[offset : offset + take])
            gpa, length, offset = gpa + take, length - take, 0
        return b"".join(parts)

    def _in_ram(self, gpa: int) -> bytes:
        index = bisect.bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self.segments[index].end:
            raise MemoryFault(gpa)
        return self._page(gpa)


class ReplayMemory(_Paged):
    """A `MemoryReader` over the pages of one step after another, as they were read live.

    Call `enter` for each step in order.  `refresh` must be called as often as on the live reader.
    """

    def __init__(self, recording: Recording) -> None:
        """No step is entered and no page is readable yet."""
        super().__init__(recording.header.segments, self._current)
        self._recording = recording
        self._known: dict[int, int] = {}
        self._generations: list[format.Generation] = []
        self._index = -1
        self._readable: set[int] | None = set()

    def enter(self, step: Step) -> None:
        """Go to ``step``, which follows the last one.  Raises `TargetError` for damage."""
        self._finish()
        first, last = step.generations
        self._generations = list(self._recording.generations(first, last)) if first <= last else []
        self._index = -1
        self.refresh()

    def refresh(self) -> None:
        """Go to the next generation of this step; after the last, no page is readable."""
        self._index += 1
        if self._index >= len(self._generations):
            self._readable = set()
            return
        generation = self._generations[self._index]
        self._known.update(zip(generation.changed, generation.ids, strict=True))
        self._readable = None if generation.whole else {*generation.changed, *generation.same}

    def _finish(self) -> None:
        """Apply the generations that the replayed step has not reached."""
        while self._index + 1 < len(self._generations):
            self.refresh()

    def _current(self, gpa: int) -> bytes:
        number = gpa >> 12
        if self._readable is not None and number not in self._readable:
            raise MemoryFault(gpa, UNRECORDED)
        known = self._known.get(number)
        if known is None:
            if self._readable is None:
                return bytes(PAGE_SIZE)
            raise self._recording.damaged(f"page {number << 12:#x} was read, but never recorded")
        page = self._recording.page(known)
        if page is None:
            raise MemoryFault(gpa, _UNREADABLE)
        return page


class StateMemory(_Paged):
    """A `MemoryReader` of guest memory at one step.

    ``complete``: a frame was taken there, so every page is exact.  ``still``: the guest stood still while it
    was taken.  ``last_known``: a page that was not read at this step has its last recorded content.
    """

    def __init__(self, recording: Recording, step: Step, *, last_known: bool = False) -> None:
        """Read the page versions of all generations up to ``step``.  Raises `TargetError` for damage."""
        super().__init__(recording.header.segments, self._at_step)
        self._recording = recording
        self.step = step
        self.last_known = last_known
        at, frame = snapshot_of(recording, step), frame_of(recording, step)
        self.complete, self.still = frame is not None, frame is not None and frame.still
        last = frame.generations[1] if frame is not None else at.generations[1]
        self._known: dict[int, int] = {}
        self._exact: set[int] = set()
        self._framed = False
        for number, generation in enumerate(recording.generations(1, last), 1):
            self._known.update(zip(generation.changed, generation.ids, strict=True))
            self._framed = self._framed or generation.whole
            if step.generations[0] <= number:
                self._exact.update(generation.changed)
                self._exact.update(generation.same)

    @property
    def pages(self) -> int:
        """Number of exact pages: all of RAM if ``complete``."""
        if self.complete:
            return sum(segment.length for segment in self.segments) // PAGE_SIZE
        return len(self._exact)

    def has(self, number: int) -> bool:
        """Whether the page (gpa / 4096) is exact at this step."""
        return self.complete or number in self._exact

    def nonzero(self) -> list[int]:
        """Numbers (gpa / 4096) of the readable pages that are not all zeros, ascending."""
        return sorted(
            number
            for number, known in self._known.items()
            if known != format.ZERO and (self.complete or self.last_known or number in self._exact)
        )

    def _at_step(self, gpa: int) -> bytes:
        number = gpa >> 12
        if not self.complete and not self.last_known and number not in self._exact:
            raise MemoryFault(gpa, UNRECORDED)
        known = self._known.get(number)
        if known is None:
            if self._framed:
                return bytes(PAGE_SIZE)
            raise MemoryFault(gpa, UNRECORDED)
        page = self._recording.page(known)
        if page is None:
            raise MemoryFault(gpa, _UNREADABLE)
        return page


def snapshot_of(recording: Recording, step: Step) -> Step:
    """The look at the whole task list that was taken at a step (the next one), or the step itself."""
    for following in recording.steps(step.id + 1, step.id + 1):
        if step.kind == "trap" and following.kind == "look" and following.cause == format.SNAPSHOT:
            return following
    return step


def frame_of(recording: Recording, step: Step) -> Step | None:
    """The frame that was taken at a step (the step itself, or the next one), or None."""
    if step.kind == "frame":
        return step if step.error is None else None
    at = snapshot_of(recording, step)
    for following in recording.steps(at.id + 1, at.id + 1):
        if following.kind == "frame" and following.after == at.id and following.error is None:
            return following
    return None
