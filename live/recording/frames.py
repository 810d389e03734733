"""Frames: all of guest memory at one step, of which only new contents are written."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, Segment
from live.recording import format
from live.recording.hold import Still
from live.recording.live_memory import RecordingMemory
from live.recording.writer import Writer

_PART = 1024
"""Changed pages per part of a frame."""
_RUN = 256
"""Pages per read."""
MAX_DIGESTS = 1 << 20
"""Most page contents remembered for deduplication (about 150 bytes each); others may be stored twice."""
_ZERO_PAGE = bytes(PAGE_SIZE)


def take_frame(
    memory: RecordingMemory,
    writer: Writer,
    digests: dict[bytes, int],
    cause: str,
    *,
    after: int,
    still: Still,
) -> int:
    """Record every page of guest RAM; return the number of the frame's step.

    ``digests``: first 16 bytes of the SHA-256 of a page content -> id of its version, kept from frame to
    frame.  ``cause``, ``after``: see `live.recording.file.Step`.  ``still``: asked at the end whether the
    guest stood still.  Raises `TargetError` if the recording cannot be written, `GuestGone`.
    """
    began, time_ns = time.monotonic_ns(), time.time_ns()
    part = _Part(memory, writer, digests)
    try:
        for segment, populated in _ranges(memory):
            part.scan(segment, populated)
        part.send(whole=True)
    except BaseException as error:
        part.send(whole=False)
        writer.frame(
            time_ns,
            time.monotonic_ns() - began,
            cause,
            after=0,
            still=False,
            error=str(error) or "interrupted",
        )
        raise
    return writer.frame(time_ns, time.monotonic_ns() - began, cause, after=after, still=still())


def _ranges(memory: RecordingMemory) -> Sequence[tuple[Segment, bool]]:
    """(segment, whether it is populated), ascending, covering all of RAM."""
    found: list[tuple[Segment, bool]] = []
    used = list(memory.populated())
    for segment in memory.segments:
        at = segment.start
        for one in used:
            start, end = max(one.start, at), min(one.end, segment.end)
            if start >= end:
                continue
            if at < start:
                found.append((Segment(start=at, length=start - at), False))
            found.append((Segment(start=start, length=end - start), True))
            at = end
        if at < segment.end:
            found.append((Segment(start=at, length=segment.end - at), False))
    return found


class _Part:
    """The part of a frame that has not been passed to the writer."""

    def __init__(self, memory: RecordingMemory, writer: Writer, digests: dict[bytes, int]) -> None:
        self._memory, self._writer, self._digests = memory, writer, digests
        self._changed: list[tuple[int, int]] = []
        self._contents: dict[int, bytes] = {}

    def scan(self, segment: Segment, populated: bool) -> None:
        known = self._writer.known
        for first in range(segment.start >> 12, segment.end >> 12, _RUN):
            numbers = range(first, min(first + _RUN, segment.end >> 12))
            if not populated:
                for number in numbers:
                    if known(number) > format.ZERO:
                        self._change(number, format.ZERO)
                continue
            for number, page in zip(numbers, self._pages(numbers), strict=True):
                if page is None:
                    self._change(number, format.FAULT)
                elif page == _ZERO_PAGE:
                    if known(number) not in (0, format.ZERO):
                        self._change(number, format.ZERO)
                else:
                    self._content(number, page)

    def _pages(self, numbers: range) -> list[bytes | None]:
        """Page contents; None for a page that cannot be read."""
        read = self._memory.source.read
        try:
            run = bytes(read(numbers[0] << 12, len(numbers) * PAGE_SIZE))
            return [run[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in range(len(numbers))]
        except MemoryFault:
            pages: list[bytes | None] = []
            for number in numbers:
                try:
                    pages.append(bytes(read(number << 12, PAGE_SIZE)))
                except MemoryFault:
                    pages.append(None)
            return pages

    def _content(self, number: int, page: bytes) -> None:
        digest = hashlib.sha256(page).digest()[:16]
        found = self._digests.get(digest)
        if found is None:
            found = self._writer.new_page()
            self._contents[found] = page
            self._digests[digest] = found
            if len(self._digests) > MAX_DIGESTS:
                del self._digests[next(iter(self._digests))]
        if found != self._writer.known(number):
            self._change(number, found)

    def _change(self, number: int, page: int) -> None:
        self._changed.append((number, page))
        if len(self._changed) >= _PART:
            self.send(whole=False)

    def send(self, *, whole: bool) -> None:
        """Pass this part to the writer; ``whole``: it completes the frame."""
        changed, contents = self._changed, self._contents
        self._changed, self._contents = [], {}
        self._memory.recorded(number for number, _ in changed)
        self._writer.frame_part(changed, contents, whole=whole)
