"""`TrapSource` over QEMU's gdb stub: breakpoints on code, watchpoints on data.

Theory of operation
-------------------
A stop is of every vCPU; one round trip reads the registers of the one that hit.

A breakpoint stops before its instruction, which has to be passed once without it to go on:

* most kernel functions begin with a no-op (``endbr64``, or the five bytes that ftrace left): it is skipped by
  setting rip behind it, in the same message that lets the guest run: nothing is removed, or missed.
* otherwise that vCPU alone is stepped (``vCont;s``) while the others stand, so that they miss nothing
  either.  TCG steps over a breakpoint as if it were not there; elsewhere it is removed before and set again
  after the step.

A second vCPU that hit at the same moment has its pc still at its breakpoint: it hits again when the guest
runs.

A watchpoint stops behind the access; there is nothing to pass.  Under TCG it is by far the better trap: at
each other stop QEMU throws its translation cache away (gdb_vm_state_change), and the guest has to translate
anew what it runs, which takes tens of milliseconds.  What a watchpoint costs there is a slower access to the
page of its word, and a stop at accesses that are not meant, which are let go at once.  A second vCPU that hit
at the same moment is found by where it stands (hits.py); its trap is delivered before the guest runs.

The hold limit is kept by a thread, and by the guardian process if we hang or die (guardian.py).

Warts: a pause by somebody else (monitor ``stop``) looks like any stop: it is left alone, and after their
``cont`` the guest is stopped for a moment and let go, for QEMU reports one stop for each time that it is
asked to run.  A guest that is paused when we attach is refused: were we killed, the guardian would start it,
as it does if we are killed in a pause.  If we are killed within a stop in which two vCPUs have hit, the one
that was not reported stops once more for the next watcher, who lets it go.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from functools import partial

from live.arch.nops import LONGEST, nop_length
from live.core.errors import GuestGone, TargetError
from live.core.memory import GuestVirtual
from live.core.traps import Access, CodeHit, Trap, TrapCounters, TrapRequest, VcpuIndex, asid_of
from live.hypervisors.qemu.gdbstub.client import GdbClient, require
from live.hypervisors.qemu.gdbstub.hits import Hit, Places
from live.hypervisors.qemu.gdbstub.server import StubServer
from live.hypervisors.qemu.gdbstub.target import Stop, decode_registers, number_of
from live.hypervisors.qemu.gdbstub.unread import Unread
from live.hypervisors.qemu.guest import QemuGuest
from live.hypervisors.qemu.monitor.watchdog import Guard

DEFAULT_HOLD = 1.0
_TRAP_SIGNAL = 5


class GdbSource:
    """Code and data addresses, trapped by the stub; the whole guest stands while a trap is held."""

    mode = "gdbstub"
    supports: frozenset[type] = frozenset({CodeHit, Access})

    def __init__(
        self, guest: QemuGuest, hold: float = DEFAULT_HOLD, *, hardware: bool = False, watch: bool = False
    ) -> None:
        """Start the stub and connect; the guest stands for a moment.

        ``hardware`` asks for hardware breakpoints (Z1: four at most, KVM), ``watch`` for watchpoints where
        what is wanted can be had by them.  Raises `TargetError`, `GuestGone`.
        """
        if guest.paused():
            raise TargetError(f"The guest {guest.info.name} is paused; resume it, then watch it.")
        what = "watchpoints" if watch else f"{'hardware' if hardware else 'software'} breakpoints"
        self.description = f"gdb stub of {guest.info.name}, {what}"
        when = "as it reads its first word" if watch else "before its first instruction"
        self.guarantee = (
            f"Every execution of a trapped kernel function is seen, {when}; "
            "the whole guest stands during each."
        )
        self.prefers: type = Access if watch else CodeHit
        self._kind = b"1" if hardware else b"0"
        self._remove_to_step = guest.info.accel != "tcg"
        self._limit = hold
        self._delivered = self._timeouts = self._sequence = self._held_ns = 0
        self._first_bytes: dict[int, bytes] = {}
        self._places = Places()
        self._pending: deque[Hit] = deque()
        """What has hit in this stop and was not delivered yet."""
        self._held: tuple[int, Hit, bytes] | None = None
        """Sequence, what is held, code under the breakpoint."""
        self._since = 0.0
        self._marked: set[int] = set()
        """Threads on which QEMU may still keep the mark of a hit that it has not reported."""
        self._last: dict[int, bytes] = {}
        """Thread -> all its registers when it last hit, as the stub sent them."""
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._guest, self._foreign = guest, False
        with contextlib.ExitStack() as undo:
            self._server = StubServer(guest)
            undo.callback(self._server.close)
            self._client = GdbClient(self._server.path)
            undo.callback(self._client.detach)
            self._guard = Guard(self._client.socket)
            undo.pop_all()
        self._client.resume()
        self._watchdog = threading.Thread(target=self._watch, name="pse-gdb-hold", daemon=True)
        self._watchdog.start()

    @property
    def counters(self) -> TrapCounters:
        """See `live.core.traps.TrapSource.counters`; nothing is ever dropped."""
        return TrapCounters(delivered=self._delivered, hold_timeouts=self._timeouts, held_ns=self._held_ns)

    def arm(self, request: TrapRequest) -> None:
        """Set and remove breakpoints and watchpoints; in force when this returns, also while a trap is held.

        Raises `TargetError` for what is neither, and where QEMU refuses.
        """
        others = (request.asid_changes, request.syscalls, request.syscalls32, request.every_syscall)
        if any(others) or request.pending or request.words:
            raise TargetError("The gdb stub traps code and data only; use plugin mode for the rest.")
        wanted = request.code if request.code_action else frozenset[GuestVirtual]()
        with self._lock:
            self._check()
            if self._foreign:
                self._regain(0)
            if wanted == self._first_bytes.keys() and request.accesses == self._places.watchpoints:
                return
            was_running = self._client.running
            if was_running:
                self._halt()
            if not self._foreign:
                self._unmark()  # a mark points to its watchpoint
            try:
                for address in sorted(self._first_bytes.keys() - wanted):
                    self._client.request(b"z%b,%x,1" % (self._kind, address))
                    del self._first_bytes[address]
                for address in sorted(wanted - self._first_bytes.keys()):
                    self._first_bytes[address] = self._client.insert(self._kind, address)
                self._arm_words(Places(request.accesses))
            finally:
                if was_running and not self._pending:
                    self._let_go()

    def _arm_words(self, places: Places) -> None:
        before, self._places = self._places, Places()
        for address in sorted(before.words - places.words):
            self._client.request(b"z4,%x,4" % address)
        for address in sorted(places.words - before.words):
            require(self._client.request(b"Z4,%x,4" % address), address)
        self._places = places

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
        if not self._pending:
            if self._foreign and not self._regain(timeout):
                return None
            if self._client.running:
                stop = self._client.wait_stop(timeout)
                if stop is None:
                    return None
                self._foreign = stop.signal != _TRAP_SIGNAL
                self._stopped(stop)
        return self._deliver()

    def _regain(self, timeout: float) -> bool:
        """After a pause by somebody else: whether the guest is ours again, and QEMU tells us of its stops."""
        status = self._guest.status()
        stop = self._client.last_stop()
        if status == "running":
            # QEMU has reported the pause, and reports no other stop until it is asked to run again.
            self._client.running = True
            try:
                stop = self._client.interrupt(self._guest.status)
            except TimeoutError:  # it stands again: paused once more, or at a hit
                return False
        elif status != "debug":  # a hit that was not reported: a breakpoint will be hit again
            time.sleep(min(timeout, 0.05))
            return False
        self._foreign = False
        self._stopped(stop)
        if not self._pending:
            self._let_go()
        return True

    def _halt(self) -> None:
        """Stop the guest, unless it stands already: at a hit, or because somebody else has paused it."""
        stop = self._client.wait_stop(0)
        if stop is None:
            stop = self._client.interrupt()
        else:
            self._foreign = stop.signal != _TRAP_SIGNAL
        self._stopped(stop)

    def _stopped(self, stop: Stop | None) -> None:
        """The guest stands: find out who has hit.  ``stop`` None: QEMU reports no hit."""
        if not self._foreign:
            self._guard.stopped(self._limit)
        self._since = time.monotonic()
        reported = max(stop.thread, 1) if stop is not None and stop.signal == _TRAP_SIGNAL else 0
        others: list[int] = []
        if self._places.words:
            others = [vcpu + 1 for vcpu in self._guest.vcpus if vcpu + 1 != reported]
        rip = b"p%x" % self._client.registers["rip"].number
        asked = [(b"Hg%x" % reported, b"g")] if reported else []
        asked += [(b"Hg%x" % thread, rip) for thread in others]
        answers = self._client.requests(*[each for pair in asked for each in pair])[1::2] if asked else []
        if reported:
            self._last[reported] = answers.pop(0)
            registers = decode_registers(self._client.registers, self._last[reported])
            self._marked.discard(reported)
            pc = registers.get("rip", 0)
            word = self._places.word(pc)
            if word is not None or pc in self._first_bytes:
                self._pending.append(Hit(reported, registers, word))
        for thread, answer in zip(others, answers, strict=True):
            if self._places.touched(number_of(answer)):
                self._take(thread)

    def _take(self, thread: int) -> None:
        """A vCPU that has hit unreported, or has not moved since it was last found to have hit."""
        _, answer = self._client.requests(b"Hg%x" % thread, b"g")
        same = self._last.get(thread) == answer
        self._last[thread] = answer
        registers = decode_registers(self._client.registers, answer)
        word = self._places.word(registers.get("rip", 0))
        if word is not None or not same:
            self._marked.add(thread)
        if word is not None:
            self._pending.append(Hit(thread, registers, word, same))

    def _unmark(self) -> None:
        """Make QEMU forget hits that it has not reported; each step is one instruction of that vCPU."""
        while self._marked:
            self._client.step(self._marked.pop())

    def _deliver(self) -> Trap | None:
        """The next of what has hit, held; None, and the guest runs, if there is none."""
        while self._pending:
            hit = self._pending.popleft()
            code = b""
            if hit.word is None:
                if hit.pc not in self._first_bytes:  # removed since it was hit
                    continue
                answer = self._client.request(b"m%x,%x" % (hit.pc, LONGEST))
                if answer[:1] != b"E":
                    code = self._first_bytes[hit.pc] + bytes.fromhex(answer.decode())[1:]
            elif self._places.word(hit.pc) is None:
                continue
            return self._hold(hit, code)
        self._let_go()
        return None

    def _hold(self, hit: Hit, code: bytes) -> Trap:
        self._guard.stopped(self._limit)
        self._since = time.monotonic()
        self._sequence += 1
        self._delivered += 1
        self._held = (self._sequence, hit, code)
        cr3 = hit.registers.get("cr3", 0)
        kind = CodeHit if hit.word is None else partial(Access, address=GuestVirtual(hit.word))
        return kind(
            vcpu=VcpuIndex(hit.thread - 1),
            asid=asid_of(cr3),
            cr3=cr3,
            pc=GuestVirtual(hit.pc),
            sequence=self._sequence,
            time_ns=int(self._since * 1e9),
            held=True,
            registers=hit.registers,
        )

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        """See `live.core.traps.TrapSource.resume`."""
        with self._lock:
            if self._held is not None and self._held[0] == trap.sequence:
                self._check()
                if self._held[1].same and not news:
                    self._marked.discard(self._held[1].thread)  # it has not moved: it was reported before
                self._go_on()

    def _go_on(self) -> None:
        """The held trap is done with; the guest runs, unless another vCPU has hit in the same stop."""
        before: tuple[bytes, ...] = ()
        if self._held is not None:
            _, hit, code = self._held
            self._held = None
            before = self._past(hit, code)
            self._held_ns += int((time.monotonic() - self._since) * 1e9)
        if self._pending:
            if before:
                self._client.requests(*before)
        else:
            self._let_go(*before)

    def _let_go(self, *before: bytes) -> None:
        """Let the guest run, requests first; unless somebody else has paused it."""
        if not self._foreign:
            if self._marked:
                if before:
                    self._client.requests(*before)
                    before = ()
                self._unmark()
            self._client.resume(*before)
        self._guard.running()

    def _past(self, hit: Hit, code: bytes) -> tuple[bytes, ...]:
        """Bring a vCPU past the instruction under its breakpoint; what it takes that was not sent yet."""
        if hit.word is not None or hit.pc not in self._first_bytes:
            return ()
        length = nop_length(code)
        if length:
            rip = (hit.pc + length).to_bytes(8, "little").hex().encode()
            return b"Hg%x" % hit.thread, b"P%x=%b" % (self._client.registers["rip"].number, rip)
        place = b"%b,%x,1" % (self._kind, hit.pc)
        if self._remove_to_step:
            self._client.request(b"z" + place)
        self._client.step(hit.thread)
        if self._remove_to_step:
            self._client.request(b"Z" + place)
        return ()

    def _check(self) -> None:
        if self._closed.is_set():
            raise TargetError("This watch of the guest was closed; attach again.")
        if self._guard.taken():
            raise TargetError(
                "We hung, or were suspended, while the guest stood at a trap, and it was let go; watch again."
            )

    def _overdue(self) -> bool:
        standing = self._held is not None or bool(self._pending)
        return standing and not self._guard.taken() and time.monotonic() - self._since >= self._limit

    def _watch(self) -> None:
        """Keep the hold limit; also where nobody waits for traps, and a stop is not even read."""
        unread = Unread(self._limit)
        while not self._closed.wait(min(0.1, self._limit / 4)):
            resumed = self._guard.resumed
            if not unread.overdue(self._client.unread(), resumed) and not self._overdue():
                continue
            with self._lock, contextlib.suppress(GuestGone, TargetError):
                if not self._overdue():
                    news = self._guard.resumed == resumed and self._client.unread()
                    if not news or self._guard.taken() or self._next(0) is None:
                        continue
                    self._delivered -= 1
                self._expire()

    def _expire(self) -> None:
        """Let the guest go: what has hit in the same stop cannot be told any more what it stands for."""
        self._timeouts += (self._held is not None) + len(self._pending)
        self._pending.clear()
        self._go_on()

    def close(self) -> None:
        """Remove every breakpoint, end the stub; the guest runs, or stays paused.  Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._watchdog.join()
        with self._lock:
            if self._guard.taken():
                # It has detached: what is said to the stub now, or was since, stops the guest again.
                self._guard.dismiss()
                self._client.socket.close()
                self._server.close()
                with contextlib.suppress(TargetError, GuestGone):
                    self._guest.monitor.hmp("cont")
                return
            stay = False
            with contextlib.suppress(TargetError, GuestGone):
                if self._foreign:
                    self._regain(0)
                if self._client.running:
                    self._halt()
                if self._foreign:
                    stay = self._guest.status() == "paused"
                else:
                    self._unmark()
            self._guard.dismiss()
            self._client.detach(stay=stay)
            self._server.close()
