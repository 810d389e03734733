"""Guest memory out of a recording: as a step saw it, or as it is known at an event.

`ReplayMemory` answers what was asked live, within one step and between the same refreshes, and nothing
else; it is what a replay runs on.  `StateMemory` is the memory at an event for everybody else: exact where a
page was read in that very step, complete where a frame was taken, and a `MemoryFault` that says so elsewhere.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, Segment
from live.recording import format
from live.recording.file import Recording, Step

UNRECORDED = "not recorded at this step: it was not read live"
_UNREADABLE = "could not be read live either"


class _Paged:
    """Reads of any length, put together from pages that `_page` gives."""

    flat: memoryview | None = None

    def __init__(self, segments: Sequence[Segment], page: Callable[[int], bytes]) -> None:
        self.segments = segments
        self._page = page
        self._starts = [segment.start for segment in segments]

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`."""
        offset = gpa & (PAGE_SIZE - 1)
        if gpa >= 0 and offset + length <= PAGE_SIZE:
            return self._in_ram(gpa >> 12)[offset : offset + length]
        if gpa < 0:
            raise MemoryFault(gpa)
        parts = []
        while length > 0:
            take = min(PAGE_SIZE - offset, length)
            parts.append(self._in_ram(gpa >> 12)[offset : offset + take])
            gpa, length, offset = gpa + take, length - take, 0
        return b"".join(parts)

    def _in_ram(self, number: int) -> bytes:
        gpa = number << 12
        index = bisect.bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self.segments[index].end:
            raise MemoryFault(gpa)
        return self._page(number)


class ReplayMemory(_Paged):
    """The pages of one step after another, as they were read; outside of a step, nothing.

    `enter` each step in order; `refresh` is called as it was on the live reader.
    """

    def __init__(self, recording: Recording) -> None:
        """Nothing is read yet."""
        super().__init__(recording.header.segments, self._current)
        self._recording = recording
        self._known: dict[int, int] = {}
        self._generations: list[format.Generation] = []
        self._index = -1
        self._readable: set[int] | None = set()

    def enter(self, step: Step) -> None:
        """Go to the next step.  Raises `TargetError` for damage."""
        self._finish()
        first, last = step.generations
        self._generations = list(self._recording.generations(first, last)) if first <= last else []
        self._index = -1
        self.refresh()

    def refresh(self) -> None:
        """Go to the next generation of this step, if one was recorded."""
        self._index += 1
        if self._index >= len(self._generations):
            self._readable = set()
            return
        generation = self._generations[self._index]
        self._known.update(zip(generation.changed, generation.ids, strict=True))
        self._readable = None if generation.whole else {*generation.changed, *generation.same}

    def _finish(self) -> None:
        """What the step did not come to is known afterwards all the same."""
        while self._index + 1 < len(self._generations):
            self.refresh()

    def _current(self, number: int) -> bytes:
        if self._readable is not None and number not in self._readable:
            raise MemoryFault(number << 12, UNRECORDED)
        known = self._known.get(number)
        if known is None:
            if self._readable is None:
                return bytes(PAGE_SIZE)
            raise self._recording.damaged(f"page {number << 12:#x} was read, but never recorded")
        page = self._recording.page(known)
        if page is None:
            raise MemoryFault(number << 12, _UNREADABLE)
        return page


class StateMemory(_Paged):
    """Guest memory as it was at one step.

    ``complete``: a frame was taken there, so every page is exact.  ``still``: the guest stood still
    meanwhile.  With ``last_known``, a page that was not read at this step is given as it was last seen.
    """

    def __init__(self, recording: Recording, step: Step, *, last_known: bool = False) -> None:
        """Goes through all that was recorded up to ``step``.  Raises `TargetError` for damage."""
        super().__init__(recording.header.segments, self._at_step)
        self._recording = recording
        self.step = step
        self.last_known = last_known
        frame = frame_of(recording, step)
        self.complete, self.still = frame is not None, frame is not None and frame.still
        last = frame.generations[1] if frame is not None else step.generations[1]
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
        """How many pages are exact; all of RAM if `complete`."""
        if self.complete:
            return sum(segment.length for segment in self.segments) // PAGE_SIZE
        return len(self._exact)

    def has(self, number: int) -> bool:
        """Whether the page (gpa / 4096) is exact at this step."""
        return self.complete or number in self._exact

    def nonzero(self) -> list[int]:
        """Numbers of the pages that are known and not all zeros, ascending; what an export writes."""
        return sorted(
            number
            for number, known in self._known.items()
            if known != format.ZERO and (self.complete or self.last_known or number in self._exact)
        )

    def _at_step(self, number: int) -> bytes:
        if not self.complete and not self.last_known and number not in self._exact:
            raise MemoryFault(number << 12, UNRECORDED)
        known = self._known.get(number)
        if known is None:
            if self._framed:
                return bytes(PAGE_SIZE)
            raise MemoryFault(number << 12, UNRECORDED)
        page = self._recording.page(known)
        if page is None:
            raise MemoryFault(number << 12, _UNREADABLE)
        return page


def frame_of(recording: Recording, step: Step) -> Step | None:
    """The frame that was taken at a step: the step itself, or the one behind it; None for none."""
    if step.kind == "frame":
        return step if step.error is None else None
    for following in recording.steps(step.id + 1, step.id + 1):
        if following.kind == "frame" and following.after == step.id and following.error is None:
            return following
    return None
