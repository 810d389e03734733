"""`TrapSource` over QEMU's gdb stub: breakpoints on code, watchpoints on data.

Theory of operation
-------------------
A breakpoint stops every vCPU; one round trip reads the registers of the one that hit, a second one the bytes
at its pc.  To go on, the instruction under the breakpoint has to be passed once without it:

* most kernel functions begin with a no-op (``endbr64``, or the five bytes that ftrace left): it is skipped by
  setting rip behind it, in the same message that lets the guest run.  Nothing is removed, nothing can be
  missed.
* otherwise that vCPU alone is stepped (``vCont;s``) while the others stand, so that they miss nothing
  either.  TCG steps over a breakpoint as if it were not there; elsewhere it is removed before and set again
  after the step.

Under TCG each hit costs the guest far more than our round trips: QEMU throws its translation cache away
(gdb_vm_state_change), and the guest has to translate anew what it runs, which takes tens of milliseconds.
KVM has no such cache.  A watchpoint has neither that price nor anything to step over, because it stops behind
the access: where a function reads some global word first, watching that word is the better trap.

A second vCPU that hit at the same moment has its pc still at its breakpoint: it hits again when the guest
runs.  Not so behind a watchpoint: QEMU reports the last vCPU only, and the other's access is done and
lost.  `pse` itself arms no watchpoints.

The hold limit is kept by a thread, and by the guardian process if we hang or die (guardian.py).

Warts: a pause by somebody else (monitor ``stop``) looks like any stop: it is left alone, and after their
``cont`` the guest is stopped for a moment and let go, for QEMU reports one stop for each time that it is
asked to run.  A guest that is paused when we attach is refused, because detaching would start it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial

from live.adapters.qemu.gdbstub.client import GdbClient
from live.adapters.qemu.gdbstub.guard import Guard
from live.adapters.qemu.gdbstub.server import StubServer
from live.adapters.qemu.gdbstub.target import WANTED, Stop, decode_registers
from live.adapters.qemu.guest import QemuGuest
from live.core.errors import GuestGone, TargetError
from live.core.memory import GuestVirtual
from live.core.traps import Access, CodeHit, Trap, TrapCounters, TrapRequest, VcpuIndex, asid_of

DEFAULT_HOLD = 1.0
_TRAP_SIGNAL = 5
_NOPS = (
    (b"\xf3\x0f\x1e\xfa", 4),  # endbr64
    (b"\x0f\x1f\x44\x00\x00", 5),  # what ftrace makes of a call to __fentry__
    (b"\x66\x0f\x1f\x00", 4),  # what the kernel makes of endbr64 where it is not needed
    (b"\x0f\x1f\x40\xd6", 4),  # the same, with a mark (from 6.15)
    (b"\x90", 1),
)
_LONGEST = 5


def nop_length(code: bytes) -> int:
    """Length of the no-op that ``code`` begins with, 0 if there is none."""
    for pattern, length in _NOPS:
        if code.startswith(pattern):
            return length
    return 0


class GdbSource:
    """Code addresses trapped by breakpoints; the whole guest stands while a trap is held."""

    mode = "gdbstub"
    supports: frozenset[type] = frozenset({CodeHit, Access})

    def __init__(self, guest: QemuGuest, hold: float = DEFAULT_HOLD, *, hardware: bool = False) -> None:
        """Start the stub and connect; the guest stands for a moment.

        ``hardware`` asks for hardware breakpoints (Z1: four at most, KVM).  Raises `TargetError`,
        `GuestGone`.
        """
        if guest.paused():
            raise TargetError(f"The guest {guest.info.name} is paused; resume it, then watch it.")
        what = "hardware" if hardware else "software"
        self.description = f"gdb stub of {guest.info.name}, {what} breakpoints"
        self.guarantee = (
            "Every execution of a trapped kernel function is seen, before its first instruction; the whole "
            "guest stands during each."
        )
        self._kind = b"1" if hardware else b"0"
        self._remove_to_step = guest.info.accel != "tcg"
        self._limit = hold
        self._delivered = self._timeouts = self._sequence = self._held_ns = 0
        self._first_bytes: dict[int, bytes] = {}
        self._watched: set[int] = set()
        self._held: tuple[int, int, bytes | None, int] | None = None
        """Sequence, thread, code under the breakpoint (None for a watchpoint), pc."""
        self._waiting: Stop | None = None
        self._held_since = 0.0
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._guest, self._foreign = guest, False
        self._server = StubServer(guest)
        try:
            self._client = GdbClient(self._server.path)
            try:
                self._layout = {
                    name: where for name, where in self._client.registers.items() if name in WANTED
                }
                self._guard = Guard(self._client.socket)
            except BaseException:
                self._client.detach()
                raise
        except BaseException:
            self._server.close()
            raise
        self._client.resume()
        self._watchdog = threading.Thread(target=self._watch, name="pse-gdb-hold", daemon=True)
        self._watchdog.start()

    @property
    def counters(self) -> TrapCounters:
        """See `live.core.traps.TrapSource.counters`; nothing is ever dropped."""
        return TrapCounters(delivered=self._delivered, hold_timeouts=self._timeouts, held_ns=self._held_ns)

    def arm(self, request: TrapRequest) -> None:
        """Set and remove breakpoints; in force when this returns, also while a trap is held.

        Raises `TargetError` for traps that are no code addresses, and where QEMU refuses a breakpoint.
        """
        if request != TrapRequest(
            code=request.code,
            code_action=request.code_action,
            fenced=request.fenced,
            accesses=request.accesses,
        ):
            raise TargetError(
                "The gdb stub traps code and data addresses only; use plugin mode for the rest."
            )
        wanted = request.code if request.code_action else frozenset[GuestVirtual]()
        with self._lock:
            self._check()
            if self._foreign:
                self._regain(0)
            add, remove = sorted(wanted - self._first_bytes.keys()), sorted(self._first_bytes.keys() - wanted)
            if not add and not remove and request.accesses == self._watched:
                return
            was_running = self._client.running
            if was_running:
                self._waiting = self._client.interrupt() or self._waiting
            try:
                for address in remove:
                    self._client.request(b"z%b,%x,1" % (self._kind, address))
                    del self._first_bytes[address]
                for address in add:
                    self._insert(address)
                for address in self._watched - request.accesses:
                    self._client.request(b"z4,%x,4" % address)
                    self._watched.discard(address)
                for address in sorted(request.accesses - self._watched):
                    self._require(self._client.request(b"Z4,%x,4" % address), address)
                    self._watched.add(address)
            finally:
                if was_running and self._waiting is None:
                    self._client.resume()

    def _insert(self, address: int) -> None:
        code, answer = self._client.requests(b"m%x,1" % address, b"Z%b,%x,1" % (self._kind, address))
        self._require(code if code[:1] == b"E" else answer, address)
        self._first_bytes[address] = bytes.fromhex(code.decode())

    @staticmethod
    def _require(answer: bytes, address: int) -> None:
        if answer != b"OK":
            raise TargetError(
                f"QEMU cannot trap at {address:#x} ({answer.decode('ascii', 'replace') or 'unsupported'}); "
                "use --mode poll."
            )

    def wait(self, timeout: float | None) -> Trap | None:
        """See `live.core.traps.TrapSource.wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            rest = 0.1 if deadline is None else min(0.1, max(0.0, deadline - time.monotonic()))
            with self._lock:
                self._check()
                trap = self._next(rest)
            if trap is not None:
                return trap
            if deadline is not None and time.monotonic() >= deadline:
                return None
            if self._held is not None:
                time.sleep(min(rest, 0.01))  # nothing can come: every vCPU stands

    def _next(self, timeout: float) -> Trap | None:
        if self._held is not None:
            return None
        if self._foreign and not self._regain(timeout):
            return None
        stop, self._waiting = self._waiting, None
        if stop is None:
            stop = self._client.wait_stop(timeout)
        if stop is None:
            return None
        if stop.signal != _TRAP_SIGNAL:
            self._foreign = True
            return None
        return self._trap(stop)

    def _regain(self, timeout: float) -> bool:
        """After a pause by somebody else: whether the guest runs again, and tells us of its stops."""
        status = self._guest.status()
        if status == "running":
            # QEMU has reported the pause, and reports no other stop until it is asked to run again.
            self._client.running = True
            self._waiting = self._client.interrupt(acknowledge=True)
            if self._waiting is None:
                self._client.resume()
        elif status == "debug":  # a hit that was not reported: let it hit again
            self._client.resume()
        else:
            time.sleep(min(timeout, 0.05))
            return False
        self._foreign = False
        return True

    def _trap(self, stop: Stop) -> Trap | None:
        thread = max(stop.thread, 1)
        now = time.monotonic()
        self._guard.stopped(self._limit)
        _, answer = self._client.requests(b"Hg%x" % thread, b"g")
        registers = decode_registers(self._layout, answer)
        pc, cr3 = registers.get("rip", 0), registers.get("cr3", 0)
        if pc not in self._first_bytes and stop.watch not in self._watched:  # removed since it was hit
            self._guard.running()
            self._client.resume()
            return None
        original = None
        if stop.watch is None:
            code = self._client.request(b"m%x,%x" % (pc, _LONGEST))
            original = b"" if code[:1] == b"E" else self._first_bytes[pc] + bytes.fromhex(code.decode())[1:]
        self._sequence += 1
        self._delivered += 1
        self._held = (self._sequence, thread, original, pc)
        self._held_since = now
        kind = CodeHit if stop.watch is None else partial(Access, address=GuestVirtual(stop.watch))
        return kind(
            vcpu=VcpuIndex(thread - 1),
            asid=asid_of(cr3),
            cr3=cr3,
            pc=GuestVirtual(pc),
            sequence=self._sequence,
            time_ns=int(now * 1e9),
            held=True,
            registers=registers,
        )

    def resume(self, trap: Trap) -> None:
        """See `live.core.traps.TrapSource.resume`."""
        with self._lock:
            if self._held is not None and self._held[0] == trap.sequence:
                self._check()
                self._go_on()

    def _go_on(self) -> None:
        assert self._held is not None
        _, thread, code, pc = self._held
        self._held = None
        self._pass(thread, code, pc)
        self._guard.running()
        self._held_ns += int((time.monotonic() - self._held_since) * 1e9)

    def _pass(self, thread: int, code: bytes | None, pc: int) -> None:
        """Let the guest run, past the instruction under the breakpoint if it stands at one."""
        if code is None or pc not in self._first_bytes:
            self._client.resume()
            return
        length = nop_length(code)
        if length:
            rip = (pc + length).to_bytes(8, "little").hex().encode()
            number = self._client.registers["rip"].number
            self._client.resume(b"Hg%x" % thread, b"P%x=%b" % (number, rip))
            return
        place = b"%b,%x,1" % (self._kind, pc)
        if self._remove_to_step:
            self._client.request(b"z" + place)
        self._client.step(thread)
        if self._remove_to_step:
            self._client.request(b"Z" + place)
        self._client.resume()

    def _check(self) -> None:
        if self._closed.is_set():
            raise TargetError("This watch of the guest was closed; attach again.")
        if self._guard.taken():
            raise TargetError("A hold lasted far too long and the guest was let go; attach again.")

    def _watch(self) -> None:
        """Keep the hold limit."""
        while not self._closed.wait(min(0.1, self._limit / 4)):
            if self._held is None or time.monotonic() - self._held_since < self._limit:
                continue
            with self._lock, contextlib.suppress(GuestGone, TargetError):
                if self._held is not None and time.monotonic() - self._held_since >= self._limit:
                    self._timeouts += 1
                    self._go_on()

    def close(self) -> None:
        """Remove every breakpoint, let the guest run, end the stub.  Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watchdog.join()
        with self._lock:
            with contextlib.suppress(TargetError, GuestGone):
                if self._foreign:
                    self._regain(0)
            self._guard.dismiss()
            self._client.detach()
            self._server.close()
