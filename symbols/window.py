"""Looking at guest memory in stretches: exact windows, and every n-th quadword of all of it.

Theory of operation.  Page-aligned things (page tables above all) are found without reading the pages
between them: ``memoryview.cast("Q")[k::512]`` yields quadword k of each page at C speed, 512 MiB in about
15 ms.  Byte patterns are searched with ``re``, which on a view of mapped memory is about ten times faster
than ``mmap.find`` and copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from live.core.memory import PAGE_SIZE, MemoryReader, Segment

Bytes = bytes | memoryview
"""What a `MemoryReader` hands out."""

CHUNK = 64 << 20
"""At most so much is asked of a reader at once, lest one that copies needs all of guest RAM again."""


class Table(Protocol):
    """A 4 KiB page-table page as 512 quadwords."""

    def __getitem__(self, index: int, /) -> int:
        """Entry ``index``."""


def in_ram(segments: list[Segment], start: int, length: int) -> bool:
    """Whether ``[start, start + length)`` (gpa) lies in one segment."""
    return any(s.start <= start and start + length <= s.end for s in segments)


def clip(memory: MemoryReader, start: int, end: int) -> tuple[int, int]:
    """``[start, end)`` (gpa) cut to the segment that holds ``start``; empty if none does."""
    for segment in memory.segments:
        if segment.start <= start < segment.end:
            return start, min(end, segment.end)
    return start, start


def quads(data: Bytes) -> memoryview:
    """``data`` as little-endian quadwords; a tail shorter than one is left out."""
    view = memoryview(data)
    return view[: len(view) & ~7].cast("Q")


def pages(memory: MemoryReader, start: int = 0, end: int = 1 << 52) -> Iterator[tuple[int, Bytes]]:
    """(gpa, bytes) stretches of guest RAM in ``[start, end)``, page-aligned at both ends, none above
    `CHUNK`.
    """
    for segment in memory.segments:
        at = max(segment.start, start)
        at += -at % PAGE_SIZE
        stop = min(segment.end, end) & -PAGE_SIZE
        while at < stop:
            length = min(CHUNK, stop - at)
            yield at, memory.read(at, length)
            at += length
