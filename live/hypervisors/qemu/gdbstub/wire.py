"""Payloads over the socket of a gdb stub: sent several at a time, received one by one.

QEMU's stub takes the start of a new packet for the acknowledgement of its last one.  So none is sent, but
before 0x03, which it would take for that.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque

from live.core.errors import GuestGone, NoTarget, NotPermitted
from live.hypervisors.qemu.gdbstub.packets import Decoder, Packet, encode
from live.hypervisors.qemu.monitor.watchdog_process import said

TIMEOUT = 5.0
"""Seconds for connecting, and for QEMU to take what is sent."""
_CHUNK = 1 << 18


class Wire:
    """A connection to a stub.  Owns its socket."""

    def __init__(self, connected: socket.socket, address: str) -> None:
        """Nothing is sent.  ``address``: where the stub is, for messages."""
        connected.settimeout(TIMEOUT)
        self._socket = connected
        self.address = address
        self._decoder = Decoder()
        self._packets: deque[bytes] = deque()
        self._unacknowledged = False
        """Whether QEMU waits for us to acknowledge what it sent last."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, *payloads: bytes) -> None:
        """Send requests at once.  Raises `GuestGone`."""
        self._put(b"".join(encode(payload) for payload in payloads))

    def interrupt(self) -> None:
        """Ask QEMU to stop the guest; it ignores that while the guest stands.  Raises `GuestGone`."""
        self._put(b"+\x03" if self._unacknowledged else b"\x03")

    def _put(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            raise self._gone() from None
        self._unacknowledged = False

    def receive(self, timeout: float) -> bytes:
        """The next payload; raises `TimeoutError` after ``timeout`` seconds, `GuestGone`."""
        deadline = time.monotonic() + timeout
        while not self._packets:
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            if not poller.poll(1000 * max(deadline - time.monotonic(), 0)):
                raise TimeoutError
            try:
                data = self._socket.recv(_CHUNK)
            except OSError:
                data = b""
            if not data:
                raise self._gone()
            self._packets += [item.payload for item in self._decoder.feed(data) if isinstance(item, Packet)]
        self._unacknowledged = True
        return self._packets.popleft()

    def acknowledged(self) -> None:
        """The last packet was ours: what QEMU sent before it, it takes for acknowledged."""
        self._unacknowledged = False

    def unread(self) -> bool:
        """Whether there is a payload that was not received yet."""
        return bool(self._packets) or said(self._socket)

    def close(self) -> None:
        """Hang up.  Safe to call twice."""
        self._socket.close()

    @staticmethod
    def _gone() -> GuestGone:
        return GuestGone(
            "The guest has ended, or its gdb stub was taken over by another; start it, or attach again."
        )


def dial(address: str) -> Wire:
    """A connection to the stub at a path, or ``HOST:PORT``.  Raises `NoTarget`, `NotPermitted`."""
    host, _, port = address.rpartition(":")
    unix = "/" in address
    connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(address if unix else (host or "127.0.0.1", int(port)))
    except PermissionError:
        connection.close()
        raise NotPermitted(
            f"Permission to use the gdb stub at {address} is denied; run as the guest's owner, or as root."
        ) from None
    except OSError as error:
        connection.close()
        raise NoTarget(f"No gdb stub listens at {address} ({error.strerror}); is the guest gone?") from error
    return Wire(connection, address)
