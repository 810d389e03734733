"""Steps where asid changes and system calls are trapped (`live.core.asids`), not functions of the kernel."""

from __future__ import annotations

from collections.abc import Mapping

from live.core.asid_watch import AsidWatch
from live.core.asids import AsidMode, Look
from live.core.events import Event, Occasion
from live.core.machine import Architecture
from live.core.system import OperatingSystem
from live.core.tracker import Counts, Tracker
from live.core.traps import AsidChange, Syscall, Trap, TrapRequest
from live.watch.stepper import Stepper, drained

TRIGGERS: Mapping[type, str] = {AsidChange: "asid change", Syscall: "system call"}
"""What the output says has shown an event."""
MODES = frozenset(mode.value for mode in AsidMode)


class AsidStepper:
    """A `live.watch.stepper.Steps`, deterministic like every one of them."""

    def __init__(self, system: OperatingSystem, machine: Architecture, mode: AsidMode) -> None:
        """The first step must be a snapshot.

        Raises `MemoryFault` or `SymbolsMissing` if the system cannot be watched so.
        """
        self._system, self._rules = system, system.asids()
        self.tracker = Tracker(system.describe, system.revisit)
        self._watch = AsidWatch(machine, self._rules, self.tracker.shown, mode)

    @property
    def request(self) -> TrapRequest:
        """See `live.watch.stepper.Steps.request`."""
        return self._watch.request

    @property
    def counts(self) -> Counts:
        """Events so far, and what was missed."""
        return self.tracker.counts

    def snapshot(self, time_ns: int, trigger: str) -> list[Event]:
        """See `live.watch.stepper.Steps.snapshot`."""
        self._take_list(time_ns, trigger)
        return drained(self.tracker)

    def trap(self, trap: Trap, time_ns: int, late_ns: int) -> list[Event]:
        """See `live.watch.stepper.Steps.trap`; other kinds of traps tell nothing here."""
        if not isinstance(trap, AsidChange | Syscall):
            return []
        look = self._watch.look(trap)
        if look is Look.NOTHING:
            self._watch.take(trap)
        elif look is Look.LIST or not self._take_caller(trap, time_ns, late_ns):
            self._take_list(time_ns, TRIGGERS[type(trap)], trap, late_ns)
        return drained(self.tracker)

    def _take_caller(self, trap: AsidChange | Syscall, time_ns: int, late_ns: int) -> bool:
        caller = self._rules.caller(trap) if isinstance(trap, Syscall) else 0
        task = self._rules.task(caller) if caller else None
        if task is None or not isinstance(trap, Syscall) or not self._watch.runs_in(task, trap.asid):
            return False
        occasion = Occasion(
            time_ns=time_ns,
            trigger=TRIGGERS[Syscall],
            late_ns=late_ns,
            missed=self.tracker.counts.missed,
        )
        self.tracker.receive_task(task, occasion)
        self._watch.take_caller(task, trap)
        return True

    def _take_list(
        self,
        time_ns: int,
        trigger: str,
        trap: AsidChange | Syscall | None = None,
        late_ns: int | None = None,
    ) -> None:
        snapshot = self._watch.corrected(self._system.snapshot(time_ns, trigger), trap)
        self.tracker.receive_tasks(snapshot, late_ns)
        self.tracker.counts.premature = self._watch.premature
        self._watch.take_list(snapshot, trap)


def stepper_of(mode: str, system: OperatingSystem, machine: Architecture) -> Stepper | AsidStepper:
    """What takes the steps in a mode.  Raises `MemoryFault` or `SymbolsMissing`."""
    return AsidStepper(system, machine, AsidMode(mode)) if mode in MODES else Stepper(system)
