"""The physical memory of a running guest as a file object, for stock plugins: ``-f SCHEME:///TARGET``.

Every read goes to the guest at that time.  Nothing is cached or copied to disk here; a buffered file object,
as Volatility opens for files, would keep showing old bytes.  Volatility's own layers do cache, so the output
of a plugin combines reads from the whole time that it ran.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import urllib.parse

from live.arch import architecture
from live.core.memory import MemoryReader
from live.core.text import printable
from live.hypervisors import registry
from live.watch import systems

vollog = logging.getLogger(__name__)

SCHEMES = registry.schemes()


class GuestFile(io.RawIOBase):
    """Guest-physical memory as a read-only file: the offset is the gpa, holes read as zeros."""

    def __init__(self, memory: MemoryReader) -> None:
        """``memory`` is shared by all files of one guest, so closing this one does not close it."""
        super().__init__()
        self.memory = memory
        self._size = memory.segments[-1].end if memory.segments else 0
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """No."""
        return False

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The gpa of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the gpa of the next read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes, fewer only at the end.  Raises `GuestGone` if the guest has ended."""
        wanted = self._size - self._at if size is None or size < 0 else size
        start, end = self._at, min(self._at + wanted, self._size)
        if start >= end:
            return b""
        data = bytearray(end - start)
        for segment in self.memory.segments:
            first, last = max(start, segment.start), min(end, segment.end)
            if first < last:
                data[first - start : last - start] = self.memory.read(first, last - first)
        self._at = end
        return bytes(data)


def target_of(url: str) -> str | None:
    """The target in ``SCHEME:///PATH`` (which Volatility turns into ``SCHEME:/PATH``) or ``SCHEME://NAME``.

    The leading slash is dropped if no such file exists: ``process:///4711``.  None: no target is named.
    """
    parsed = urllib.parse.urlparse(url)
    text = urllib.parse.unquote(parsed.netloc or parsed.path)
    return (text if os.path.exists(text) else text.lstrip("/")) or None


def open_url(url: str) -> GuestFile:
    """The memory of the guest that ``url`` names.  Raises `TargetError`."""
    return GuestFile(_memory(urllib.parse.urlparse(url).scheme, target_of(url)))


@functools.lru_cache(maxsize=8)
def _memory(scheme: str, target: str | None) -> MemoryReader:
    """The memory of a guest, attached once per run.

    Volatility opens a URL four times, and a monitor serves one client at a time.
    """
    guest = registry.hypervisor(scheme).attach(target)
    if guest.unplaced is not None:
        systems.place(guest.unplaced, architecture(guest.info.machine), systems.finders())
    for note in guest.notes:
        vollog.warning("%s: %s", printable(guest.info.name), printable(note))
    if guest.pauses is None or not guest.pauses.paused():
        vollog.warning(
            "the guest %s is running: what is read changes while it is read; stop it (monitor command: stop) "
            "for an exact view",
            printable(guest.info.name),
        )
    guest.keep_memory_only()  # leave the monitor to other clients
    return guest.memory
