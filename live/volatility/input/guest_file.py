"""The physical memory of a running guest as a file, so that stock plugins can look at it: ``-f
qemu:///PATH``.

Every read goes to the guest as it is at that moment; nothing is cached or copied to disk here (a file object
with a buffer, as the host opens for files, would go on showing old bytes).  The host's layers keep what they
have read, so what one plugin prints is a look that took as long as the plugin ran.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import urllib.parse
from typing import Any

from live.core.memory import MemoryReader
from live.core.text import printable
from live.hypervisors.registry import ADAPTERS, adapter

vollog = logging.getLogger(__name__)

SCHEMES = tuple(ADAPTERS)


class GuestFile(io.RawIOBase):
    """Guest RAM, indexed by gpa; holes between its segments read as zeros."""

    def __init__(self, memory: MemoryReader) -> None:
        """``memory`` is shared with other files of the same guest and stays open when this one is closed."""
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
        """Choose the gpa of the next read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes; fewer at the end only.  Raises `GuestGone` when the guest has ended."""
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
    """The guest that a URL names: ``qemu:///PATH`` (which the host turns into ``qemu:/PATH``), ``qemu://NAME``."""
    parsed = urllib.parse.urlparse(url)
    return urllib.parse.unquote(parsed.netloc or parsed.path) or None


def open_url(url: str) -> GuestFile:
    """The memory of the guest that ``url`` names.  Raises `TargetError`."""
    return GuestFile(_memory(urllib.parse.urlparse(url).scheme, target_of(url)))


@functools.lru_cache(maxsize=8)
def _memory(scheme: str, target: str | None) -> MemoryReader:
    """Attached once a run: the host opens a URL four times, and a monitor serves one client at a time."""
    guest: Any = adapter(scheme).attach(target)
    if not guest.paused():
        vollog.warning(
            "the guest %s is running: what is read changes while it is read; stop it (monitor command: stop) "
            "for an exact view",
            printable(str(guest.info.name)),
        )
    guest.leave_monitor()  # others may want to talk to the guest
    memory: MemoryReader = guest.memory
    return memory
