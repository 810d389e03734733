"""`TrapSource` over QEMU's gdb stub: breakpoints on code, watchpoints on data.

Theory of operation
-------------------
What there is to know is decided elsewhere, without I/O: what a stop means and what is owed (`stops`), who has
hit in it (`hits`), how a breakpoint is passed (`passage`), what is armed (`armed`).  Here it is done: packets
are sent, the guest is waited for, one lock keeps the reader and the hold timer (`timer`) apart.

A stop is of every vCPU; one round trip reads the registers of the one that hit.  A breakpoint stops before
its instruction, a watchpoint behind the access.  Under TCG a watchpoint is by far the better trap: at each
other stop QEMU throws its translation cache away (gdb_vm_state_change), and the guest has to translate anew
what it runs, which takes tens of milliseconds.  What a watchpoint costs there is a slower access to the page
of its word, and a stop at accesses that are not meant, which are let go at once.

The hold limit is kept by the hold timer, and by the watchdog process if we hang or die
(`live.hypervisors.qemu.monitor.watchdog`).

Warts: QEMU reports one stop for each time that it is asked to run.  So after a pause by somebody else and
their ``cont`` the guest is stopped for a moment and let go.  A guest that is paused when we attach is
refused: were we killed, the watchdog would start it, as it does if we are killed in a pause.  If we are
killed within a stop in which two vCPUs have hit, the one that was not reported stops once more for the next
watcher, who lets it go.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable

from live.core.errors import GuestGone, TargetError
from live.core.machine import Architecture
from live.core.traps import Access, CodeHit, Trap, TrapCounters, TrapRequest
from live.hypervisors.qemu.gdbstub import stops
from live.hypervisors.qemu.gdbstub.armed import Armed, Change
from live.hypervisors.qemu.gdbstub.client import GdbClient
from live.hypervisors.qemu.gdbstub.hits import HitFinder
from live.hypervisors.qemu.gdbstub.needs import StubGuest
from live.hypervisors.qemu.gdbstub.passage import Passage
from live.hypervisors.qemu.gdbstub.server import StubConnection
from live.hypervisors.qemu.gdbstub.stops import State, Stops
from live.hypervisors.qemu.gdbstub.target import TRAP_SIGNAL
from live.hypervisors.qemu.gdbstub.timer import HoldTimer, Unread
from live.hypervisors.qemu.monitor.watchdog import Watchdog

DEFAULT_HOLD = 1.0
_WAIT_S = 0.1
"""Seconds for which the lock is kept while nothing comes."""


class GdbSource:
    """Code and data addresses, trapped by the stub; the whole guest stands while a trap is held."""

    mode = "gdbstub"
    supports: frozenset[type] = frozenset({CodeHit, Access})
    holds_all = True

    def __init__(
        self,
        guest: StubGuest,
        machine: Architecture,
        hold: float = DEFAULT_HOLD,
        *,
        hardware: bool = False,
        watch: bool = False,
    ) -> None:
        """Start the stub and connect; the guest stands for a moment.

        ``hold``: seconds that it may stand for a trap at most.  ``hardware`` asks for hardware breakpoints
        (Z1: four at most, KVM), ``watch`` for watchpoints where what is wanted can be had by them.  Raises
        `TargetError`, `GuestGone`.
        """
        if guest.status() != "running":
            raise TargetError(f"The guest {guest.name} is paused; resume it, then watch it.")
        what = "watchpoints" if watch else f"{'hardware' if hardware else 'software'} breakpoints"
        self.description = f"gdb stub of {guest.name}, {what}"
        when = "as it reads its first word" if watch else "before its first instruction"
        self.guarantee = (
            f"Every execution of a trapped kernel function is seen, {when}; "
            "the whole guest stands during each."
        )
        self.prefers: type = Access if watch else CodeHit
        self._guest, self._limit = guest, hold
        with contextlib.ExitStack() as undo:
            self._stub = StubConnection(guest.monitor, guest)
            undo.callback(self._stub.close)
            self._client = GdbClient(self._stub.wire, machine)
            undo.callback(self._client.detach)
            self._watchdog = Watchdog(self._stub.wire)
            undo.pop_all()
        self._armed = Armed(hardware=hardware)
        registers = self._client.registers
        hits = HitFinder(machine, registers, self._armed, [vcpu + 1 for vcpu in guest.vcpus])
        passage = Passage(machine, registers, self._armed, remove_to_step=guest.accelerator != "tcg")
        self._stops = Stops(machine, self._armed, hits, passage)
        self._unread = Unread(hold)
        self._lock = threading.RLock()
        self._closed = False
        self._client.resume()
        self._timer = HoldTimer(hold, self._tick)

    @property
    def counters(self) -> TrapCounters:
        """See `live.core.traps.TrapSource.counters`; nothing is ever dropped."""
        return self._stops.counters

    def arm(self, request: TrapRequest) -> None:
        """Set and remove breakpoints and watchpoints; in force when this returns, also while a trap is held.

        Raises `TargetError` for what is neither, and where QEMU refuses; `GuestGone`.
        """
        with self._lock:
            self._check()
            change = self._armed.change(request)
            if self._stops.foreign:
                self._regain(0)
            if change is None:
                self._require_alive()
                return
            was_running = self._client.running
            if was_running:
                self._halt()
            self._do(self._stops.clean())
            try:
                self._change(change)
            finally:
                if was_running:
                    self._feed(stops.Settle())

    def _change(self, change: Change) -> None:
        self._armed.begun(change)
        self._armed.answered(change, self._client.requests(*change.requests))

    def wait(self, timeout: float | None) -> Trap | None:
        """See `live.core.traps.TrapSource.wait`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            rest = _WAIT_S if deadline is None else min(_WAIT_S, max(0.0, deadline - time.monotonic()))
            with self._lock:
                self._check()
                trap = self._next(rest)
            if trap is not None:
                return trap
            if deadline is not None and time.monotonic() >= deadline:
                return None
            if self._stops.state is State.HELD:
                time.sleep(min(rest, 0.01))  # nothing can come: every vCPU stands

    def _next(self, timeout: float) -> Trap | None:
        if self._stops.state is State.HELD:
            self._require_alive()
            return None
        if not self._stops.pending:
            if self._stops.foreign and not self._regain(timeout):
                return None
            if self._client.running:
                stop = self._client.wait_stop(timeout)
                if stop is None:
                    return None
                self._feed(stops.Stopped(stop))
        return self._feed(stops.Deliver())

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
        self._feed(stops.Stopped(stop if stop is not None and stop.signal == TRAP_SIGNAL else None))
        self._feed(stops.Settle())
        return True

    def _halt(self) -> None:
        """Stop the guest, unless it stands already: at a hit, or because somebody else has paused it."""
        stop = self._client.wait_stop(0)
        if stop is None:
            stop = self._client.interrupt()
        self._feed(stops.Stopped(stop))

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        """See `live.core.traps.TrapSource.resume`."""
        with self._lock:
            if self._stops.state is State.HELD:
                self._check()
                self._feed(stops.Resume(trap.sequence, news))

    def _feed(self, given: stops.Input) -> Trap | None:
        return self._do(self._stops.feed(given, time.monotonic()))

    def _do(self, outputs: Iterable[stops.Output]) -> Trap | None:
        """Do what the state machine says; the trap that it delivers."""
        delivered = None
        todo = deque(outputs)
        while todo:
            match todo.popleft():
                case stops.Stand():
                    self._watchdog.stopped(self._limit)
                case stops.Hold() as hold:
                    delivered = hold.trap
                case stops.Ask() as ask:
                    given = stops.Answered(self._client.requests(*ask.requests))
                    todo += self._stops.feed(given, time.monotonic())
                case stops.LetGo() as go:
                    self._client.resume(*go.before)
                    self._watchdog.running()
                case stops.Send() as send:
                    self._client.requests(*send.requests)
                case stops.Step() as step:
                    self._client.step(step.thread)
                case stops.Leave():
                    self._watchdog.running()
        return delivered

    def _check(self) -> None:
        if self._closed:
            raise TargetError("This watch of the guest was closed; attach again.")
        if self._watchdog.taken():
            self._feed(stops.Taken())
            self._require_alive()
            raise TargetError(
                "We hung, or were suspended, while the guest stood at a trap, and it was let go; watch again."
            )

    def _require_alive(self) -> None:
        """Where nothing is asked of the stub, which would fail if the guest has ended."""
        if not self._guest.alive():
            raise self._guest.gone()

    def _overdue(self) -> bool:
        return self._stops.standing() and time.monotonic() - self._stops.since >= self._limit

    def _tick(self) -> None:
        """Keep the hold limit; also where nobody waits for traps, and a stop is not even read."""
        resumed = self._watchdog.resumed
        unread = self._unread.overdue(time.monotonic(), resumed, said=self._client.unread())
        if not unread and not self._overdue():
            return
        with self._lock, contextlib.suppress(GuestGone, TargetError):
            if self._watchdog.taken():
                return
            if not self._overdue():
                if self._watchdog.resumed != resumed or not self._client.unread():
                    return  # somebody has read it meanwhile
                stop = self._client.wait_stop(0)
                if stop is None:
                    return
                self._feed(stops.Stopped(stop))
            self._feed(stops.Expire())

    def close(self) -> None:
        """Remove every breakpoint, end the stub; the guest runs, or stays paused.  Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._timer.end()
        with self._lock:
            if self._watchdog.taken():
                # It has detached: what is said to the stub now, or was since, stops the guest again.
                self._watchdog.dismiss()
                self._stub.close()
                with contextlib.suppress(TargetError, GuestGone):
                    self._guest.monitor.hmp("cont")
                return
            stay = False
            with contextlib.suppress(TargetError, GuestGone):
                if self._stops.foreign:
                    self._regain(0)
                if self._client.running:
                    self._halt()
                if self._stops.foreign:
                    stay = self._guest.status() == "paused"
                else:
                    self._do(self._stops.clean())
            self._watchdog.dismiss()
            self._client.detach(stay=stay)
            self._stub.close()
