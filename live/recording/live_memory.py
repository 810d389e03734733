"""Guest memory that remembers what was read of it, one version of a page between two refreshes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, MemoryReader

_KEPT = 8192
"""Pages whose last version is kept (32 MiB), to tell at once that a page did not change."""


class Read(NamedTuple):
    """One page whose content is new: its number (gpa / 4096), content, and what it held before, if known.

    ``page`` is None for one that could not be read.
    """

    number: int
    page: bytes | None
    before: bytes | None


class Reads(NamedTuple):
    """The pages that were read between two refreshes."""

    changed: list[Read]
    same: list[int]


class RecordingMemory:
    """Wraps a `MemoryReader`; within a step, notes every page that is read.

    Within a step a page is read once between two refreshes, and every read between them sees that
    one version: exactly what a replay will see.  Outside of a step reads go through, unnoticed.
    """

    flat: memoryview | None = None

    def __init__(self, memory: MemoryReader) -> None:
        """Nothing is read yet."""
        self.source = memory
        self._refresh_source: Callable[[], None] | None = getattr(memory, "refresh", None)
        self.segments = memory.segments
        self._last: OrderedDict[int, bytes] = OrderedDict()
        self._pages: dict[int, bytes] = {}
        self._faults: dict[int, MemoryFault] = {}
        self._changed: list[Read] = []
        self._same: list[int] = []
        self._done: list[Reads] = []
        self._active = False

    def begin(self) -> None:
        """A step begins."""
        self._forget()
        if self._refresh_source is not None:
            self._refresh_source()
        self._done = []
        self._active = True

    def end(self) -> list[Reads]:
        """The step is over: what it read, one entry a generation."""
        self.refresh()
        self._active = False
        return self._done

    def abort(self) -> None:
        """The step failed and will not be kept: nothing of what it read counts as recorded."""
        self.refresh()
        self._active = False
        for reads in self._done:
            for read in reads.changed:
                self._last.pop(read.number, None)
        self._done = []

    def refresh(self) -> None:
        """What is read from now on is the guest's memory as it is from now on."""
        if not self._active:
            return
        if self._refresh_source is not None:
            self._refresh_source()
        last = self._last
        for number, page, _ in self._changed:
            if page is None:
                last.pop(number, None)
            else:
                last[number] = page
                last.move_to_end(number)
        while len(last) > _KEPT:
            last.popitem(last=False)
        # Generations are counted, so that a replay refreshes where the live reader did: none is left out.
        self._done.append(Reads(self._changed, self._same))
        self._forget()

    def recorded(self, numbers: Iterable[int]) -> None:
        """These pages (gpa / 4096) were recorded otherwise: what we remember of them is out of date."""
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
