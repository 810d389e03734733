"""The watcher's side of the watchdog process (`watchdog_process`)."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from live.hypervisors.qemu.monitor import watchdog_process as process

_U64 = struct.Struct("<Q")


class Shared(Protocol):
    """A socket, or what has one."""

    def fileno(self) -> int:
        """Its descriptor."""


class Watchdog:
    """A running watchdog process.

    It acts when we die, and when a stop lasts beyond its time, or is not noticed.
    """

    def __init__(self, shared: Shared, kind: str = "gdb") -> None:
        """Start it; it shares the socket of a gdb stub (``"gdb"``) or of a monitor (``"qmp"``, ``"hmp"``)."""
        page = os.memfd_create("pse-watchdog", os.MFD_CLOEXEC)
        ours, self._pipe = os.pipe()
        try:
            os.ftruncate(page, mmap.PAGESIZE)
            self._page = mmap.mmap(page, mmap.PAGESIZE)
            self.resumed = 0
            """How often the guest was let run."""
            numbers = (shared.fileno(), ours, page)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(process.__file__)), kind, *map(str, numbers)],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what is sent to our group must not reach it
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(page)
            os.close(ours)

    def stopped(self, limit: float | None) -> None:
        """The guest stands, for ``limit`` seconds at most; None: as long as we live."""
        until = process.FOREVER if limit is None else time.monotonic_ns() + int(limit * 1e9)
        _U64.pack_into(self._page, process.DEADLINE_AT, until)

    def running(self) -> None:
        """The guest runs, or is about to."""
        self.resumed += 1
        _U64.pack_into(self._page, process.RESUMED_AT, self.resumed)
        _U64.pack_into(self._page, process.DEADLINE_AT, 0)

    def taken(self) -> bool:
        """Whether the watchdog let the guest go; the connection cannot be used any more."""
        return bool(_U64.unpack_from(self._page, process.TAKEN_AT)[0])

    def dismiss(self) -> None:
        """End it without it doing anything."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, process.FAREWELL)
        os.close(self._pipe)
        self._process.wait()
        self._page.close()
