"""What drives the tracker: a timer, or traps.

Poll: on every tick the kernel's counters are read, O(1).  Only if they moved, or if the guest was
busy within the last second, or when the refresh is due, is the task list walked: exec, and the
death of a process that nobody reaped, move no counter.  Where reading stops the guest, snapshots are so far
apart that it stands for a small part of the time only (`live.core.memory.MemoryReader.rest`).

Traps: the system's lifecycle points (`live.core.system.LifecyclePoints`) are trapped, and each reports one
finished step while its vCPU is held.  A snapshot seeds the tracker, and one is taken after a few seconds in
which something was trapped, when the guest is idle for a moment, and at the end: it proves from the kernel's
counters that nothing was missed, and repairs it, counted, if something was.

A trap says something only while its vCPU is held: afterwards the task that it names may be
another one.  If we were too late (stopped for longer than the hold limit, or starved for long), what was
trapped meanwhile is left out, and a snapshot takes its place before the next trap that is in time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from live.core.errors import GuestGone, MemoryFault
from live.core.events import Event
from live.core.snapshot import Counters
from live.core.tracker import REWIND
from live.core.traps import AsidChange, Trap, TrapRequest, TrapSource
from live.watch.modes import Choice
from live.watch.session import Session
from live.watch.stepper import LONG_HELD_NS, Steps

Deliver = Callable[[Event], None]

BUSY_S = 1.0
REFRESH_S = 0.05
IDLE_S = 0.1
PROOF_S = 5.0
LAZY_S = 0.005
"""How often the kernel's counters are read where asid changes are trapped, and none comes: a kernel keeps the
asid of a process for what has none, so a process may die, and be reaped, without an asid change."""
LAZY_LOOK_S = 0.05
"""How often the task list is read then: a death alone moves no counter."""


@dataclass(slots=True)
class Cost:
    """What watching cost us.

    ``snapshots`` of the task list took ``snapshot_ns`` in all; ``traps`` were handled, for which vCPUs
    were held for ``held_ns`` in all.  ``late`` traps were taken too late to be of use: a
    snapshot took their place.
    """

    snapshots: int = 0
    snapshot_ns: int = 0
    traps: int = 0
    held_ns: int = 0
    late: int = 0


class Poller:
    """Drives the steps by a timer; ``interval`` in seconds."""

    def __init__(self, session: Session, steps: Steps, interval: float) -> None:
        """Nothing is read yet."""
        self._session, self._steps, self._interval = session, steps, interval
        self.cost = Cost()

    def run(self, deadline: float | None, deliver: Deliver) -> Iterator[None]:
        """Snapshot until ``deadline`` (`time.monotonic`); yields after each tick.

        Raises `GuestGone` when the guest ends, reboots or can no longer be read.
        """
        trigger, tick = "attach", time.monotonic()
        memory = self._session.guest.memory
        seen: Counters | None = None
        busy_until = refresh_at = 0.0
        while True:
            now = time.monotonic()
            with _guest_readable():
                memory.refresh()
                counters = self._session.counters()
                if _went_back(self._session, counters, seen):
                    trigger = REWIND
                if counters != seen or now < busy_until or now >= refresh_at:
                    if counters != seen:
                        busy_until = now + BUSY_S
                    refresh_at = now + REFRESH_S
                    seen = counters
                    _snapshot(self._steps, self.cost, trigger, deliver)
                    trigger = "timer"
            yield
            if deadline is not None and now >= deadline:
                return
            tick = max(tick + self._interval, time.monotonic() + memory.rest())
            until = tick if deadline is None else min(tick, deadline)
            self._session.sleep(max(0.0, until - time.monotonic()))


class Trapper:
    """Drives the steps by traps: of the kernel's own lifecycle functions, or of asid changes."""

    def __init__(self, session: Session, steps: Steps, source: TrapSource, request: TrapRequest) -> None:
        """Nothing is armed yet.  ``request``: from `Session.request`, or `Steps.request`."""
        self._session, self._steps, self._source = session, steps, source
        self.request = request
        """What `run` will arm."""
        self._losses, self._lost_ns, self._resync = (0, 0), 0, False
        self._seen: Counters | None = None
        self._back = False
        self.cost = Cost()

    def run(self, deadline: float | None, deliver: Deliver) -> Iterator[None]:
        """Handle traps until ``deadline`` (`time.monotonic`); yields after each.

        ``deliver`` is called while the vCPU is held.  Raises `GuestGone`.
        """
        self._source.arm(self.request)
        with _guest_readable():
            _snapshot(self._steps, self.cost, "attach", deliver)
        self._rearm()
        yield
        asids = self._steps.request is not None
        pause, patience = (LAZY_S, LAZY_LOOK_S) if asids else (IDLE_S, PROOF_S)
        proof_at, dirty = time.monotonic() + patience, False
        while True:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                break
            trap = self._source.wait(pause if deadline is None else min(pause, deadline - now))
            if trap is None:
                self._resynchronise(deliver)
                self._session.sleep(0)
                counters = self._look_back()
                lost = self._back or (asids and counters != self._steps.tracker.counters)
            else:
                dirty, lost = True, False
                self._handle(trap, deliver)
            # Proof when the guest is idle; when it never is, anyway, a little later.
            due = now >= proof_at and (trap is None or now >= proof_at + PROOF_S)
            if lost or ((dirty or asids) and due):
                self._look_back()
                with _guest_readable():
                    _snapshot(self._steps, self.cost, REWIND if self._back else "proof", deliver)
                self._back = False
                self._rearm()
                proof_at, dirty = now + patience, False
            yield
        # The last proof, while what has not been handled is still held.
        with _guest_readable():
            _snapshot(self._steps, self.cost, "proof", deliver)
        self._source.arm(TrapRequest())
        yield

    def _handle(self, trap: Trap, deliver: Deliver) -> None:
        news = True
        try:
            if self._in_time(trap):
                self._resynchronise(deliver)
                counts = self._steps.tracker.counts
                unreadable = counts.unreadable
                events = self._steps.trap(trap, time.time_ns(), time.monotonic_ns() - trap.time_ns)
                news = bool(events)
                self._resync |= counts.unreadable > unreadable
                for event in events:
                    deliver(event)
                self._rearm()
            else:
                self.cost.late += 1
                self._resync = True
        finally:
            self._source.resume(trap, news=news)
        self.cost.traps += 1
        self.cost.held_ns = self._source.counters.held_ns

    def _look_back(self) -> Counters:
        """The kernel's counters; `_back` if they say that the guest is at an earlier moment of its boot.

        Between two snapshots traps alone do not say how far the guest has come, so they are kept.
        """
        with _guest_readable():
            counters = self._session.counters()
            for before in (self._seen, self._steps.tracker.counters):
                self._back = self._back or _went_back(self._session, counters, before)
        self._seen = counters
        return counters

    def _rearm(self) -> None:
        """Trap what the steps so far have made of the request; in force before a held vCPU goes on."""
        request = self._steps.request
        if request is not None and request is not self.request:
            self.request = request
            self._source.arm(request)

    def _in_time(self, trap: Trap) -> bool:
        """Whether the vCPU of a trap still stands where it was trapped, so that memory is as it was then."""
        counters = self._source.counters
        losses = (counters.hold_timeouts, counters.dropped)
        now = time.monotonic_ns()
        if losses != self._losses:
            self._losses, self._lost_ns, self._resync = losses, now, True
        if isinstance(trap, AsidChange) and not trap.held:
            return True  # it says that an asid is new, which stays true
        # Every vCPU may have been held then: of the traps from before, the old ones are over.
        return trap.held and (trap.time_ns > self._lost_ns or now - trap.time_ns < LONG_HELD_NS)

    def _resynchronise(self, deliver: Deliver) -> None:
        if self._resync:
            self._resync = False
            with _guest_readable():
                _snapshot(self._steps, self.cost, "resync", deliver)
            self._rearm()


def watcher_of(session: Session, choice: Choice, steps: Steps, interval: float) -> Trapper | Poller:
    """What drives ``steps`` in the mode that was chosen.  ``interval``: seconds, in poll mode.

    Raises `SymbolsMissing` if the kernel lacks a function that has to be trapped.
    """
    if choice.source is None:
        return Poller(session, steps, interval)
    return Trapper(session, steps, choice.source, steps.request or session.request(choice.source))


def _snapshot(steps: Steps, cost: Cost, trigger: str, deliver: Deliver) -> None:
    begin = time.perf_counter_ns()
    events = steps.snapshot(time.time_ns(), trigger)
    cost.snapshots += 1
    cost.snapshot_ns += time.perf_counter_ns() - begin
    for event in events:
        deliver(event)


def _went_back(session: Session, now: Counters, before: Counters | None) -> bool:
    """Whether the guest is at an earlier moment of the same boot: somebody restored a snapshot (loadvm).

    Raises `GuestGone` if it is another boot.
    """
    if before is None or now.forks >= before.forks:
        return False
    if not session.os.same_boot():
        raise GuestGone("the guest was started anew; run pse watch again to follow it")
    return True


@contextlib.contextmanager
def _guest_readable() -> Iterator[None]:
    """Turns a fault in the kernel's own globals into `GuestGone`."""
    try:
        yield
    except MemoryFault as fault:
        raise GuestGone(
            f"the guest's kernel can no longer be read ({fault}): it was probably started anew; "
            "run pse watch again"
        ) from fault
