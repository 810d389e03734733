"""Looking at guest memory in stretches: exact windows, and every n-th quadword of all of it.

Theory of operation.  Page-aligned things (page tables above all) are found without reading the pages
between them: ``memoryview.cast("Q")[k::512]`` yields quadword k of each page at C speed, 512 MiB in about
15 ms.  Byte patterns are searched with ``re``, which on a view of mapped memory is about ten times faster
than ``mmap.find`` and copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from live.core.memory import PAGE_SIZE, MemoryReader, Segment

Bytes = bytes | memoryview
"""What a `MemoryReader` hands out."""

CHUNK = 64 << 20
"""At most so much is asked of a reader at once, lest one that copies needs all of guest RAM again."""


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


def below(segments: Iterable[Segment], end: int) -> list[Segment]:
    """The parts of ``segments`` below gpa ``end``."""
    return [
        Segment(start=one.start, length=min(one.end, end) - one.start) for one in segments if one.start < end
    ]


def pages(memory: MemoryReader, parts: Iterable[Segment]) -> Iterator[tuple[int, Bytes]]:
    """(gpa, bytes) stretches of ``parts`` of guest RAM, page-aligned at both ends, none above `CHUNK`.

    Whoever looks at all of RAM gives `MemoryReader.populated`: reading the rest makes the host allocate it.
    """
    for part in parts:
        at = part.start + -part.start % PAGE_SIZE
        stop = part.end & -PAGE_SIZE
        while at < stop:
            length = min(CHUNK, stop - at)
            yield at, memory.read(at, length)
            at += length
