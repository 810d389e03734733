"""Start the gdb stub of a running guest through its monitor, on a socket that only we and QEMU can
reach, or use the idle one that ``-gdb`` made."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile

from live.adapters.qemu.guest import QemuGuest
from live.core.errors import GuestGone, PseError, TargetError

_PREFIX = "pse-gdb-"
_SOCKET = "stub"
_LISTED = re.compile(r"^gdb: filename=(.*)$", re.MULTILINE)


_ADDRESS = re.compile(r"disconnected:(?:unix:([^,]+)|tcp:([^,]+:\d+)),")


class StubServer:
    """A stub that we started, or found idle (``-gdb``); `close` ends it if it is ours."""

    def __init__(self, guest: QemuGuest) -> None:
        """Start it.  Raises `TargetError` if a debugger is using the guest's stub, or QEMU refuses."""
        self._guest = guest
        listed = _LISTED.search(guest.monitor.hmp("info chardev"))
        if listed and not listed[1].startswith("disconnected:"):
            raise TargetError(
                f"The gdb stub of {guest.info.name} is in use, by a debugger or another watcher; end that."
            )
        self._directory: str | None = None
        found = _ADDRESS.match(listed[1]) if listed else None
        if found and (left := _left_behind(found[1])):  # by a watcher that was killed
            guest.monitor.hmp("gdbserver none")
            _remove(left)
        elif found:
            self.path = found[1] or found[2]
            return
        self._directory = tempfile.mkdtemp(prefix=_PREFIX)
        self.path = os.path.join(self._directory, _SOCKET)
        try:
            with contextlib.suppress(PermissionError):
                os.chown(self._directory, guest.info.uid, -1)  # QEMU creates the socket
            answer = guest.monitor.hmp(f"gdbserver unix:{self.path},server=on,wait=off")
            if not os.path.exists(self.path):
                raise TargetError(
                    f"QEMU does not start its gdb stub ({answer.strip() or 'no reason'}); use --mode poll."
                )
        except BaseException:
            _remove(self._directory)
            raise

    def close(self) -> None:
        """End the stub if we started it.  Safe to call twice."""
        if self._directory is None:
            return
        with contextlib.suppress(PseError, GuestGone):
            self._guest.monitor.hmp("gdbserver none")
        _remove(self._directory)


def _left_behind(path: str | None) -> str | None:
    """The directory of a stub's socket, if this class made it: QEMU's monitor may say anything."""
    if path is None:
        return None
    directory, name = os.path.split(path)
    above, prefix = os.path.split(directory)
    ours = name == _SOCKET and above == tempfile.gettempdir() and prefix.startswith(_PREFIX)
    return directory if ours else None


def _remove(directory: str) -> None:
    """Remove what this class makes, and nothing else that may be there."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _SOCKET))
    with contextlib.suppress(OSError):
        os.rmdir(directory)
