"""Guest memory that notes what is read from it: one version of each page between two refreshes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, MemoryReader, Segment

_KEPT = 8192
"""Pages whose last version is kept (32 MiB in all), to detect that a page has not changed."""


class Read(NamedTuple):
    """A page with new content: its number (gpa / 4096), content, and previous content if known.

    ``page`` is None if the page could not be read.
    """

    number: int
    page: bytes | None
    before: bytes | None


class Reads(NamedTuple):
    """The pages that were read between two refreshes; ``same``: numbers of those with unchanged content."""

    changed: list[Read]
    same: list[int]


class RecordingMemory:
    """A `MemoryReader` that wraps another one and, within a step, notes every page that is read.

    Within a step a page is read from the guest once between two refreshes, and every read sees that version,
    exactly as in a replay.  Outside of a step reads pass through and are not noted.
    """

    flat: memoryview | None = None

    def __init__(self, memory: MemoryReader) -> None:
        """Nothing is read yet."""
        self.source = memory
        self.segments = memory.segments
        self._last: OrderedDict[int, bytes] = OrderedDict()
        self._pages: dict[int, bytes] = {}
        self._faults: dict[int, MemoryFault] = {}
        self._changed: list[Read] = []
        self._same: list[int] = []
        self._done: list[Reads] = []
        self._active = False

    @property
    def description(self) -> str:
        """Of the wrapped reader."""
        return self.source.description

    def populated(self) -> Sequence[Segment]:
        """See `live.core.memory.MemoryReader.populated`."""
        return self.source.populated()

    def rest(self) -> float:
        """See `live.core.memory.MemoryReader.rest`."""
        return self.source.rest()

    def begin(self) -> None:
        """Begin a step."""
        self._forget()
        self.source.refresh()
        self._done = []
        self._active = True

    def end(self) -> list[Reads]:
        """End the step; return what it read, one entry per generation."""
        self.refresh()
        self._active = False
        return self._done

    def abort(self) -> None:
        """End a step that will not be recorded: nothing that it read counts as recorded."""
        self.refresh()
        self._active = False
        for reads in self._done:
            for read in reads.changed:
                self._last.pop(read.number, None)
        self._done = []

    def refresh(self) -> None:
        """See `live.core.memory.MemoryReader.refresh`; ends a generation."""
        if not self._active:
            return
        self.source.refresh()
        last = self._last
        for number, page, _ in self._changed:
            if page is None:
                last.pop(number, None)
            else:
                last[number] = page
                last.move_to_end(number)
        while len(last) > _KEPT:
            last.popitem(last=False)
        # An empty generation is kept too: a replay counts them to refresh where the live reader did.
        self._done.append(Reads(self._changed, self._same))
        self._forget()

    def recorded(self, numbers: Iterable[int]) -> None:
        """Forget the last versions of these pages (gpa / 4096): a frame has recorded newer ones."""
        for number in numbers:
            self._last.pop(number, None)

    def _forget(self) -> None:
        self._pages, self._faults, self._changed, self._same = {}, {}, [], []

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        """See `live.core.memory.MemoryReader.read`."""
        page = self._pages.get(gpa >> 12)
        offset = gpa & (PAGE_SIZE - 1)
        if page is not None and offset + length <= PAGE_SIZE:
            return page[offset : offset + length]
        if not self._active:
            return self.source.read(gpa, length)
        if offset + length <= PAGE_SIZE:
            return self._fetch(gpa >> 12)[offset : offset + length]
        parts = []
        while length > 0:
            take = min(PAGE_SIZE - offset, length)
            number = gpa >> 12
            page = self._pages.get(number) or self._fetch(number)
            parts.append(page[offset : offset + take])
            gpa, length, offset = gpa + take, length - take, 0
        return b"".join(parts)

    def _fetch(self, number: int) -> bytes:
        known = self._faults.get(number)
        if known is not None:
            raise known
        try:
            page = bytes(self.source.read(number << 12, PAGE_SIZE))
        except MemoryFault as fault:
            if any(segment.start <= number << 12 < segment.end for segment in self.segments):
                self._faults[number] = fault
                self._changed.append(Read(number, None, None))
            raise
        before = self._last.get(number)
        if before == page:
            self._same.append(number)
        else:
            self._changed.append(Read(number, page, before))
        self._pages[number] = page
        return page
