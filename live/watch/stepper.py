"""One step of watching: a snapshot or a trap, over the memory as it is now, gives events.

Everything that depends on the outside comes in as an argument (the trap, the time), everything else
is read from guest memory.  So the same steps over the same memory give the same events, byte for
byte: that is what a recording replays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from live.core.asids import AsidMode, AsidWatch
from live.core.events import Event, Occasion
from live.core.machine import Architecture
from live.core.system import OperatingSystem
from live.core.tracker import Counts, Tracker
from live.core.traps import AsidChange, Syscall, Trap, TrapRequest

LONG_HELD_NS = 100_000_000
"""A trap that is older may not be held for much longer; where a hold has run out, it may be the one."""


TRIGGERS: Mapping[type, str] = {AsidChange: "asid change", Syscall: "system call"}
"""What the output says has shown an event."""


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
    """Drives the tracker of one system, one step at a time."""

    def __init__(self, system: OperatingSystem, asids: AsidWatch | None = None) -> None:
        """The first step must be a snapshot: it seeds the tracker.

        ``asids``: where asid changes and system calls are trapped, not lifecycle points.
        """
        self._system, self._asids = system, asids
        self.tracker = Tracker(system.describe, system.revisit)

    @property
    def request(self) -> TrapRequest | None:
        """See `Steps.request`."""
        return self._asids.request if self._asids is not None else None

    @property
    def counts(self) -> Counts:
        """Events so far, and what was missed."""
        return self.tracker.counts

    def snapshot(self, time_ns: int, trigger: str) -> list[Event]:
        """Walk the whole task list.  ``time_ns``: UTC ns by the observer's clock.

        Raises `MemoryFault` if not even the head of the list can be read.
        """
        self._look(time_ns, trigger)
        return self._events()

    def _look(
        self,
        time_ns: int,
        trigger: str,
        trap: AsidChange | Syscall | None = None,
        late_ns: int | None = None,
    ) -> None:
        snapshot = self._system.snapshot(time_ns, trigger)
        if self._asids is not None:
            snapshot = self._asids.corrected(snapshot, trap, self.tracker.announced())
            self.tracker.counts.premature = self._asids.premature
        self.tracker.receive_tasks(snapshot, late_ns)
        if self._asids is not None:
            self._asids.take(snapshot, trap, self.tracker.announced())

    def trap(self, trap: Trap, time_ns: int, late_ns: int) -> list[Event]:
        """Take in a trap, while its vCPU is held.  ``late_ns``: ns since it was taken.

        Raises `SymbolsMissing` if the kernel lacks a function of the points.
        """
        if isinstance(trap, AsidChange | Syscall):
            if self._asids is not None:
                self._look(time_ns, TRIGGERS[type(trap)], trap, late_ns)
            return self._events()
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
        return self._events()

    def _events(self) -> list[Event]:
        events = []
        while (event := self.tracker.next_event()) is not None:
            events.append(event)
        return events


def asid_watch(mode: str, system: OperatingSystem, machine: Architecture) -> AsidWatch | None:
    """What `Stepper` needs in a mode that traps asid changes; None for another mode.

    Raises `MemoryFault` or `SymbolsMissing` if the system cannot be watched so.
    """
    if mode not in ASID_MODES:
        return None
    return AsidWatch(machine, system.asids(), AsidMode(mode))


ASID_MODES = frozenset(mode.value for mode in AsidMode)
