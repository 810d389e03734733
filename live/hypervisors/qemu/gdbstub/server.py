"""Start the gdb stub of a running guest through its monitor, on a socket that only we and QEMU can
reach, or use the idle one that ``-gdb`` made."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import tempfile
from typing import Protocol

from live.core.errors import GuestGone, NotPermitted, PseError, TargetError
from live.hypervisors.qemu.discover import GuestInfo
from live.hypervisors.qemu.gdbstub.client import connect
from live.hypervisors.qemu.monitor.client import Monitor

_PREFIX = "pse-gdb-"
_SOCKET = "stub"
_CALL_S = 0.5
"""Seconds for QEMU's call to arrive, which it makes before its monitor answers.  The guest may stand."""
_LISTED = re.compile(r"^gdb: filename=(.*)$", re.MULTILINE)


_ADDRESS = re.compile(r"disconnected:(?:unix:([^,]+)|tcp:([^,]+:\d+)),")


class _Guest(Protocol):
    info: GuestInfo
    monitor: Monitor


def _listed(monitor: Monitor, name: str) -> re.Match[str] | None:
    """The guest's stub in ``info chardev``, if it has one.  Raises `TargetError` if it is being used."""
    listed = _LISTED.search(monitor.hmp("info chardev"))
    if listed and not listed[1].startswith("disconnected:"):
        raise TargetError(f"The gdb stub of {name} is in use, by a debugger or another watcher; end that.")
    if listed and ",server" not in listed[1]:
        # One that had called somebody, who was killed: nobody can use it, and QEMU starts no other beside it.
        monitor.hmp("gdbserver none")
        return None
    return listed


class StubServer:
    """A stub that we started, or found idle (``-gdb``); `close` ends it if it is ours."""

    def __init__(self, guest: _Guest) -> None:
        """Start it.  Raises `TargetError` if a debugger is using the guest's stub, or QEMU refuses."""
        self._guest = guest
        listed = _listed(guest.monitor, guest.info.name)
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


class StubConnection:
    """A stub that QEMU has connected to a socket of ours; or a connection to the idle one of ``-gdb``.

    QEMU calls us, because the socket that it makes to be called on may belong to a user that we are not: it
    is his alone to write to.  Nothing is left in the file system, however we end.
    """

    def __init__(self, monitor: Monitor, info: GuestInfo) -> None:
        """Connect, which stops the guest.

        Raises `TargetError` if a debugger is using the guest's stub or QEMU refuses, `NotPermitted`.
        """
        self._monitor, self._started = monitor, False
        listed = _listed(monitor, info.name)
        found = _ADDRESS.match(listed[1]) if listed else None
        if found and _left_behind(found[1]) is None:
            self.socket = connect(found[1] or found[2])
            return
        directory = tempfile.mkdtemp(prefix=_PREFIX)
        path = os.path.join(directory, _SOCKET)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                if info.uid not in (0, -1, os.geteuid()):
                    os.chmod(path, 0o666)  # for QEMU's user; whoever else calls is sent away below
                    os.chmod(directory, 0o711)
                listener.settimeout(_CALL_S)
                listener.listen(1)
                answer = monitor.hmp(f"gdbserver unix:{path}")
                self._started = True
                self.socket = _accept(listener, info.uid, answer.strip())
        except BaseException:
            self._end()
            raise
        finally:
            _remove(directory)

    def _end(self) -> None:
        started, self._started = self._started, False
        if started:
            with contextlib.suppress(PseError):
                self._monitor.hmp("gdbserver none")

    def close(self) -> None:
        """Hang up, and end the stub if we started it.  The guest runs on, or stands, as before."""
        self.socket.close()
        self._end()


def _accept(listener: socket.socket, uid: int, answer: str) -> socket.socket:
    """QEMU's call.  ``uid`` is its user, -1 if unknown; ``answer`` is what the monitor said."""
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        raise TargetError(
            f"QEMU does not connect its gdb stub to us ({answer or 'no reason'}): it may be confined, or not "
            f"see {tempfile.gettempdir()}; set TMPDIR to a directory that both can reach."
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
