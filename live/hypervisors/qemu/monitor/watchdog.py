"""The watcher's side of the guardian process (guardian.py)."""

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

from live.hypervisors.qemu.monitor import watchdog_process as guardian

_U64 = struct.Struct("<Q")


class Shared(Protocol):
    """A socket, or what has one."""

    def fileno(self) -> int:
        """Its descriptor."""


class Guard:
    """A running guardian; it acts when we die, and when a stop lasts beyond its time, or is not noticed."""

    def __init__(self, shared: Shared, kind: str = "gdb") -> None:
        """Start it; it shares the socket of a gdb stub (``"gdb"``) or of a monitor (``"qmp"``, ``"hmp"``)."""
        page = os.memfd_create("pse-guard", os.MFD_CLOEXEC)
        ours, self._pipe = os.pipe()
        try:
            os.ftruncate(page, mmap.PAGESIZE)
            self._page = mmap.mmap(page, mmap.PAGESIZE)
            self.resumed = 0
            """How often the guest was let run."""
            numbers = (shared.fileno(), ours, page)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(guardian.__file__)), kind, *map(str, numbers)],
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
        until = guardian.FOREVER if limit is None else time.monotonic_ns() + int(limit * 1e9)
        _U64.pack_into(self._page, guardian.DEADLINE_AT, until)

    def running(self) -> None:
        """The guest runs, or is about to."""
        self.resumed += 1
        _U64.pack_into(self._page, guardian.RESUMED_AT, self.resumed)
        _U64.pack_into(self._page, guardian.DEADLINE_AT, 0)

    def taken(self) -> bool:
        """Whether the guardian let the guest go; the connection cannot be used any more."""
        return bool(_U64.unpack_from(self._page, guardian.TAKEN_AT)[0])

    def dismiss(self) -> None:
        """End it without it doing anything."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, guardian.FAREWELL)
        os.close(self._pipe)
        self._process.wait()
        self._page.close()
