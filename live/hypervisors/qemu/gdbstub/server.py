"""The gdb stub of a running guest: started through its monitor, or the idle one that ``-gdb`` made.

QEMU calls us, because the socket that it makes to be called on may belong to a user that we are not: it is
his alone to write to.  Nothing is left in the file system, unless we are killed before QEMU has called.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import tempfile

from live.core.errors import NotPermitted, PseError, TargetError
from live.hypervisors.qemu.gdbstub.needs import Hmp, Owner
from live.hypervisors.qemu.gdbstub.wire import Wire, dial

_PREFIX = "pse-gdb-"
_SOCKET = "stub"
_CALL_S = 0.5
"""Seconds for QEMU's call to arrive, which it makes before its monitor answers.  The guest may stand."""
_LISTED = re.compile(r"^gdb: filename=(.*)$", re.MULTILINE)
_ADDRESS = re.compile(r"disconnected:(?:unix:([^,]+)|tcp:([^,]+:\d+))")
_END = "gdbserver none"


class StubConnection:
    """A stub that we have started, or found idle, and are connected to: `wire`."""

    def __init__(self, monitor: Hmp, owner: Owner) -> None:
        """Connect, which stops the guest.  ``monitor`` is the owner's, and stays the caller's.

        Raises `TargetError` if a debugger is using the guest's stub or QEMU refuses, `NoTarget` (the idle one
        is gone), `NotPermitted`, `GuestGone`.
        """
        self._monitor, self._started = monitor, False
        idle = _idle(monitor, owner.name)
        if idle is not None:
            self.wire = dial(idle)
            return
        directory = tempfile.mkdtemp(prefix=_PREFIX)
        path = os.path.join(directory, _SOCKET)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                if owner.uid not in (0, -1, os.geteuid()):
                    os.chmod(path, 0o666)  # for QEMU's user; whoever else calls is sent away below
                    os.chmod(directory, 0o711)
                listener.settimeout(_CALL_S)
                listener.listen(1)
                answer = monitor.hmp(f"gdbserver unix:{path}")
                self._started = True
                self.wire = Wire(_accept(listener, owner.uid, answer.strip()), path)
        except BaseException:
            self._end()
            raise
        finally:
            _remove(directory)

    def _end(self) -> None:
        started, self._started = self._started, False
        if started:
            with contextlib.suppress(PseError):
                self._monitor.hmp(_END)

    def close(self) -> None:
        """Hang up, and end the stub if we started it.  The guest runs on, or stands, as before."""
        self.wire.close()
        self._end()


def _idle(monitor: Hmp, name: str) -> str | None:
    """Where the guest's stub listens: a path, or ``HOST:PORT``; None if it has none.

    What a watcher that was killed left behind is removed.  Raises `TargetError` if the stub is being used.
    """
    listed = _LISTED.search(monitor.hmp("info chardev"))
    if listed is None:
        return None
    if not listed[1].startswith("disconnected:"):
        raise TargetError(f"The gdb stub of {name} is in use, by a debugger or another watcher; end that.")
    found = _ADDRESS.match(listed[1])
    left = _left_behind(found[1]) if found else None
    if left is not None or ",server" not in listed[1]:
        # One that had called somebody, who was killed: nobody can use it, and QEMU starts no other beside it.
        monitor.hmp(_END)
        if left is not None:
            _remove(left)
        return None
    return found[1] or found[2] if found else None


def _accept(listener: socket.socket, uid: int, answer: str) -> socket.socket:
    """QEMU's call.  ``uid`` is its user, -1 if unknown; ``answer`` is what the monitor said."""
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        raise TargetError(
            f"QEMU does not connect its gdb stub to us ({answer or 'no reason'}): it may be confined, or not "
            f"see {tempfile.gettempdir()}; set TMPDIR to a directory that both can reach, or use --mode poll."
        ) from None
    caller = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    if uid != -1 and caller not in (uid, 0):
        connection.close()
        raise NotPermitted(
            f"Somebody else (uid {caller}) took the place of QEMU's gdb stub; set TMPDIR to a directory of "
            "yours."
        )
    return connection


def _left_behind(path: str | None) -> str | None:
    """The directory of a stub's socket, if this module made it: QEMU's monitor may say anything."""
    if path is None:
        return None
    directory, name = os.path.split(path)
    above, prefix = os.path.split(directory)
    ours = name == _SOCKET and above == tempfile.gettempdir() and prefix.startswith(_PREFIX)
    return directory if ours else None


def _remove(directory: str) -> None:
    """Remove what this module makes, and nothing else that may be there."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _SOCKET))
    with contextlib.suppress(OSError):
        os.rmdir(directory)
