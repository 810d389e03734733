"""One step of watching: a snapshot or a trap, over the memory as it is now, gives events.

Everything that depends on the outside comes in as an argument (the trap, the time), everything else
is read from guest memory.  So the same steps over the same memory give the same events, byte for
byte: that is what a recording replays.
"""

from __future__ import annotations

from typing import Protocol

from live.core.events import Event, Occasion
from live.core.system import OperatingSystem
from live.core.tracker import Counts, Tracker
from live.core.traps import Access, CodeHit, Trap, TrapRequest

LONG_HELD_NS = 100_000_000
"""A trap that is older may not be held for much longer; where a hold has run out, it may be the one."""


class Steps(Protocol):
    """What a watcher drives: `Stepper`, or something that also writes down what it does."""

    tracker: Tracker

    @property
    def request(self) -> TrapRequest | None:
        """What is to be trapped from now on, where steps change that; None where they do not."""

    def snapshot(self, time_ns: int, trigger: str) -> list[Event]:
        """Snapshot at the whole task list."""

    def trap(self, trap: Trap, time_ns: int, late_ns: int) -> list[Event]:
        """Take in a trap, while its vCPU is held."""


class Stepper:
    """Drives the tracker of one system, one step at a time: by lifecycle points, or by snapshots alone."""

    request: TrapRequest | None = None
    """Always the same: that of the points."""

    def __init__(self, system: OperatingSystem) -> None:
        """The first step must be a snapshot: it seeds the tracker."""
        self._system = system
        self.tracker = Tracker(system.describe, system.revisit, system.uptime)

    @property
    def counts(self) -> Counts:
        """Events so far, and what was missed."""
        return self.tracker.counts

    def snapshot(self, time_ns: int, trigger: str) -> list[Event]:
        """Walk the whole task list.  ``time_ns``: UTC ns by the observer's clock.

        Raises `MemoryFault` if not even the head of the list can be read.
        """
        self.tracker.receive_tasks(self._system.snapshot(time_ns, trigger))
        return drained(self.tracker)

    def trap(self, trap: Trap, time_ns: int, late_ns: int) -> list[Event]:
        """Take in a trap, while its vCPU is held.  ``late_ns``: ns since it was taken.

        Raises `SymbolsMissing` if the kernel lacks a function of the points.
        """
        if not isinstance(trap, CodeHit | Access):
            return []
        reached = self._system.points().reached(trap)
        if reached is None:
            self.tracker.counts.unreadable += 1
            return []
        if reached.created is not None:
            self.tracker.created(*reached.created)
        if reached.happening is None:
            return []
        self.tracker.receive(
            reached.happening,
            Occasion(
                time_ns=time_ns,
                trigger=reached.function,
                late_ns=late_ns,
                missed=self.tracker.counts.missed,
            ),
            standing=trap.held and late_ns < LONG_HELD_NS,
        )
        return drained(self.tracker)


def drained(tracker: Tracker) -> list[Event]:
    """The events that a step has made."""
    events = []
    while (event := tracker.next_event()) is not None:
        events.append(event)
    return events
