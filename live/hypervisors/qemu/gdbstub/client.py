"""A client of QEMU's gdb stub: requests and answers, and the stops that nobody asked for.

QEMU's stub (gdbstub/gdbstub.c) has these habits, which all of this builds on:

* a byte that arrives while the guest runs stops it and is lost; so nothing is sent then but 0x03;
* it ignores 0x03 while the guest stands;
* ``?`` removes every breakpoint and watchpoint, whoever set it: what a watcher that crashed left behind is
  gone after connecting;
* a stop is of all vCPUs; ``T05`` names the one that hit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from live.core.errors import GuestGone, TargetError
from live.core.machine import Architecture
from live.hypervisors.qemu.gdbstub.target import (
    CORE_FILES,
    INTERRUPT_SIGNAL,
    Register,
    RegisterFile,
    Stop,
    parse_stop,
    parse_target,
)
from live.hypervisors.qemu.gdbstub.wire import Wire

TIMEOUT = 5.0
"""Seconds for an answer of a stopped guest's stub."""
_SOON = 0.2
_ROUNDS = 3
"""Questions to the monitor.  QEMU's main loop may answer one before it reads what was sent to the stub
earlier, but then it reads that before it comes to the next."""


class GdbClient:
    """One connection, which stopped the guest when it was made; `resume` lets it run."""

    def __init__(self, wire: Wire, machine: Architecture) -> None:
        """Greet the stub and clean it up.  The guest stands when this returns, and runs if it raises.

        Owns ``wire`` from here on.  Raises `TargetError` (another debugger, no stub of QEMU, or one that does
        not describe the machine), `GuestGone`.
        """
        self._wire = wire
        self.running = False
        """The guest was told to run, and no stop was told of since."""
        understood, core = CORE_FILES.get(machine.name, (b"", ""))
        try:
            self._wire.send(b"qSupported:xmlRegisters=%b" % understood if understood else b"qSupported")
            while not self._wire.receive(TIMEOUT).startswith(b"PacketSize"):
                pass  # QEMU 7.2 says that it stopped the guest for us
            self._wire.send(b"?")
            if parse_stop(self._wire.receive(TIMEOUT)) is None:
                raise TargetError(
                    f"What listens at {wire.address} is no gdb stub of QEMU; check the guest's -gdb."
                )
            self.registers = RegisterFile(self._described(core), machine)
        except TimeoutError:
            self.detach()  # connecting has stopped the guest
            raise TargetError(
                f"The gdb stub at {wire.address} does not answer: another debugger uses it; end that one "
                "first."
            ) from None
        except BaseException:
            self.detach()
            raise

    def _described(self, core: str) -> dict[str, Register]:
        return (parse_target(self._read_feature, core) if core else {}) or parse_target(self._read_feature)

    def _read_feature(self, name: str) -> str:
        text = b""
        while True:
            part = self.request(b"qXfer:features:read:%b:%x,ffb" % (name.encode(), len(text)))
            text += part[1:]
            if part[:1] != b"m":
                return text.decode("ascii", "replace")

    def request(self, payload: bytes) -> bytes:
        """The answer to a request; raises `TargetError` if there is none in time, `GuestGone`."""
        return self.requests(payload)[0]

    def requests(self, *payloads: bytes) -> list[bytes]:
        """The answers to several requests in one round trip."""
        if not payloads:
            return []
        self._wire.send(*payloads)
        return [self._answer() for _ in payloads]

    def _answer(self) -> bytes:
        try:
            return self._wire.receive(TIMEOUT)
        except TimeoutError:
            raise TargetError(
                f"QEMU's gdb stub has not answered for {TIMEOUT:.0f} s: QEMU hangs, or waits for its disk; "
                "watch again when it is back."
            ) from None

    def interrupt(self, ask: Callable[[], object] | None = None) -> Stop | None:
        """Stop a running guest.  What was reported instead of our interrupt is returned; None: nothing was.

        ``ask``, where the guest may have come to stand without our being told: puts a question to QEMU's
        monitor.  Raises `TimeoutError` if QEMU has ignored the interrupt, `TargetError`, `GuestGone`.
        """
        self._wire.interrupt()
        try:
            stop = parse_stop(self._answer() if ask is None else self._answer_if_heard(ask))
        except TimeoutError:
            self.running = False
            raise
        self.running = False
        return stop if stop is not None and stop.signal != INTERRUPT_SIGNAL else None

    def _answer_if_heard(self, ask: Callable[[], object]) -> bytes:
        with contextlib.suppress(TimeoutError):
            return self._wire.receive(_SOON)
        for _ in range(_ROUNDS):
            ask()
        return self._wire.receive(0)

    def unread(self) -> bool:
        """Whether the guest was told to run, and the stub has said more since than that it heard us."""
        return self.running and self._wire.unread()

    def wait_stop(self, timeout: float) -> Stop | None:
        """The next stop of a running guest, or None after ``timeout`` seconds.  Raises `GuestGone`."""
        try:
            stop = parse_stop(self._wire.receive(timeout))
        except TimeoutError:
            return None
        # Else it is what the stub says to the watchdog, or that QEMU ends, whereupon it hangs up.
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
        self._wire.send(*before, b"c")
        for _ in before:
            self._answer()
        self._wire.acknowledged()
        self.running = True

    def step(self, thread: int) -> Stop | None:
        """One instruction on one vCPU while all others stand; breakpoints do not stop it under TCG."""
        self._wire.send(b"vCont;s:%x" % thread)
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
        self._wire.close()

    def _forgets(self) -> bool:
        """Remove every breakpoint of a guest that stands; False if it ran, which this has stopped."""
        try:
            self.request(b"?")
        except TargetError:
            return False
        return True
