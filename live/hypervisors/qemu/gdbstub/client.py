"""A client of QEMU's gdb stub: requests and answers over a socket, several in flight.

QEMU's stub (gdbstub/gdbstub.c) has these habits, which all of this builds on:

* a byte that arrives while the guest runs stops it and is lost; so nothing is sent then but 0x03;
* it takes the start of a new packet for the acknowledgement of its last one; so we send none, but before
  0x03, which it would take for that;
* it ignores 0x03 while the guest stands;
* ``?`` removes every breakpoint and watchpoint, whoever set it: what a watcher that crashed left behind is
  gone after connecting;
* a stop is of all vCPUs; ``T05`` names the one that hit.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from live.core.errors import GuestGone, NoTarget, NotPermitted, TargetError
from live.hypervisors.qemu.gdbstub.packets import Decoder, Packet, encode
from live.hypervisors.qemu.gdbstub.target import WANTED, Stop, parse_stop, parse_target
from live.hypervisors.qemu.monitor.watchdog_process import said

TIMEOUT = 5.0
"""Seconds for an answer of a stopped guest's stub."""
_CORE = "i386-64bit.xml"
"""All of `WANTED`, and what ``g`` begins with.  Asked for by name because ``target.xml``, which QEMU composes
for each connection, is memory that it never frees."""
_SOON = 0.2
_ROUNDS = 3
"""Questions to the monitor.  QEMU's main loop may answer one before it reads what was sent to the stub
earlier, but then it reads that before it comes to the next."""


class GdbClient:
    """One connection.  Connecting stops the guest; `resume` lets it run."""

    def __init__(self, path: str) -> None:
        """Connect to the stub (a path, or ``HOST:PORT``), clean it up.  The guest stands when this returns.

        Raises `NoTarget`, `NotPermitted`, `TargetError` (another debugger), `GuestGone`.
        """
        self._decoder = Decoder()
        self._packets: deque[bytes] = deque()
        self._owed = False
        """Whether QEMU waits for us to acknowledge what it sent last."""
        self.running = False
        self.socket = connect(path)
        try:
            self.send(b"qSupported:xmlRegisters=i386")
            while not self.receive(TIMEOUT).startswith(b"PacketSize"):
                pass  # QEMU 7.2 says that it stopped the guest for us
            self.send(b"?")
            stop = parse_stop(self.receive(TIMEOUT))
            if stop is None:
                raise TargetError(f"What listens at {path} is no gdb stub of QEMU; check the guest's -gdb.")
            found = parse_target(self._read_feature, _CORE) or parse_target(self._read_feature)
            self.registers = {name: where for name, where in found.items() if name in WANTED}
        except TimeoutError:
            self.detach()  # connecting has stopped the guest
            raise TargetError(
                f"The gdb stub at {path} does not answer: another debugger uses it; end that one first."
            ) from None
        except BaseException:
            self.detach()
            raise

    def _read_feature(self, name: str) -> str:
        text = b""
        while True:
            part = self.request(b"qXfer:features:read:%b:%x,ffb" % (name.encode(), len(text)))
            text += part[1:]
            if part[:1] != b"m":
                return text.decode("ascii", "replace")

    def send(self, *payloads: bytes) -> None:
        """Send requests at once.  Raises `GuestGone`."""
        try:
            self.socket.sendall(b"".join(encode(payload) for payload in payloads))
        except OSError:
            raise self._gone() from None
        self._owed = False

    def request(self, payload: bytes) -> bytes:
        """The answer to a request; raises `TargetError` if there is none in time, `GuestGone`."""
        return self.requests(payload)[0]

    def requests(self, *payloads: bytes) -> list[bytes]:
        """The answers to several requests in one round trip."""
        self.send(*payloads)
        return [self._answer() for _ in payloads]

    def _answer(self) -> bytes:
        try:
            return self.receive(TIMEOUT)
        except TimeoutError:
            raise TargetError(
                f"QEMU's gdb stub has not answered for {TIMEOUT:.0f} s: QEMU hangs, or waits for its disk; "
                "watch again when it is back."
            ) from None

    def receive(self, timeout: float) -> bytes:
        """The next packet's payload; raises `TimeoutError` after ``timeout`` seconds, `GuestGone`."""
        deadline = time.monotonic() + timeout
        while not self._packets:
            rest = deadline - time.monotonic()
            if not select.select([self.socket], [], [], max(rest, 0))[0]:
                raise TimeoutError
            try:
                data = self.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise self._gone()
            self._packets.extend(
                item.payload for item in self._decoder.feed(data) if isinstance(item, Packet)
            )
        self._owed = True
        return self._packets.popleft()

    @staticmethod
    def _gone() -> GuestGone:
        return GuestGone("The guest has ended, and its gdb stub with it; start it to watch again.")

    def interrupt(self, ask: Callable[[], object] | None = None) -> Stop | None:
        """Stop a running guest.  A breakpoint that was hit meanwhile is returned; None if none was.

        ``ask``, where the guest may have come to stand without our being told: puts a question to QEMU's
        monitor.  Raises `TimeoutError` if QEMU has ignored the interrupt, `TargetError`, `GuestGone`.
        """
        try:
            self.socket.sendall(b"+\x03" if self._owed else b"\x03")
        except OSError:
            raise self._gone() from None
        self._owed = False
        try:
            stop = parse_stop(self._answer() if ask is None else self._answer_if_heard(ask))
        except TimeoutError:
            self.running = False
            raise
        self.running = False
        return stop if stop is not None and stop.signal != 2 else None

    def _answer_if_heard(self, ask: Callable[[], object]) -> bytes:
        with contextlib.suppress(TimeoutError):
            return self.receive(_SOON)
        for _ in range(_ROUNDS):
            ask()
        return self.receive(0)

    def unread(self) -> bool:
        """Whether the guest was told to run, and the stub has said more since than that it heard us."""
        return self.running and (bool(self._packets) or said(self.socket))

    def wait_stop(self, timeout: float) -> Stop | None:
        """The next stop of a running guest, or None after ``timeout`` seconds.  Raises `GuestGone`."""
        try:
            stop = parse_stop(self.receive(timeout))
        except TimeoutError:
            return None
        # Else it is what the stub says to the guardian, or that QEMU ends, whereupon it hangs up.
        if stop is not None:
            self.running = False
        return stop

    def last_stop(self) -> Stop | None:
        """The last that was told and not read; QEMU 7.2 tells of all, asked or not.  Raises `GuestGone`."""
        last = None
        while (stop := self.wait_stop(0)) is not None:
            last = stop
        return last

    def resume(self, *before: bytes) -> None:
        """Send requests, then let every vCPU run; the answers to ``before`` are read here."""
        self.send(*before, b"c")
        for _ in before:
            self._answer()
        self._owed = False  # the last packet was ours
        self.running = True

    def insert(self, kind: bytes, address: int) -> bytes:
        """Set a breakpoint (Z0, Z1); the byte that is there.  Raises `TargetError` if there is none."""
        code, answer = self.requests(b"m%x,1" % address, b"Z%b,%x,1" % (kind, address))
        require(code if code[:1] == b"E" else answer, address)
        return bytes.fromhex(code.decode())

    def step(self, thread: int) -> Stop | None:
        """One instruction on one vCPU while all others stand; breakpoints do not stop it under TCG."""
        self.send(b"vCont;s:%x" % thread)
        return parse_stop(self._answer())

    def detach(self, *, stay: bool = False) -> None:
        """Remove every breakpoint, hang up; the guest runs, unless it is to ``stay`` as it stands.

        Never raises on account of the guest.
        """
        with contextlib.suppress(TargetError, GuestGone):
            if self.running:
                self.interrupt()
            if not (stay and self._forgets()):
                self.request(b"D")
        self.socket.close()

    def _forgets(self) -> bool:
        """Remove every breakpoint of a guest that stands; False if it ran, which this has stopped."""
        try:
            self.request(b"?")
        except TargetError:
            return False
        return True


def connect(path: str) -> socket.socket:
    """A socket to the stub at a path, or ``HOST:PORT``.  Raises `NoTarget`, `NotPermitted`."""
    host, _, port = path.rpartition(":")
    unix = "/" in path
    connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(path if unix else (host or "127.0.0.1", int(port)))
    except PermissionError:
        connection.close()
        raise NotPermitted(
            f"Permission to use the gdb stub at {path} is denied; run as the guest's owner, or as root."
        ) from None
    except OSError as error:
        connection.close()
        raise NoTarget(f"No gdb stub listens at {path} ({error.strerror}); is the guest gone?") from error
    return connection


def require(answer: bytes, address: int) -> None:
    """Raise `TargetError` unless the stub has set a trap at a guest-virtual address."""
    if answer != b"OK":
        raise TargetError(
            f"QEMU cannot trap at {address:#x} ({answer.decode('ascii', 'replace') or 'unsupported'}); "
            "use --mode poll."
        )
