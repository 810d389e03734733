"""Steps where asid changes and system calls are trapped (`live.core.asids`), not functions of the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from live.core.asid_watch import AsidWatch
from live.core.asids import AsidMode, Look
from live.core.events import Event, Occasion
from live.core.machine import Architecture
from live.core.snapshot import Task
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
        self.tracker = Tracker(system.describe, system.revisit, system.uptime)
        self._watch = AsidWatch(machine, self._rules, self.tracker.shown, mode)
        self._compared_ns = 0

    @property
    def request(self) -> TrapRequest:
        """See `live.watch.stepper.Steps.request`."""
        return self._watch.request

    def fence(self) -> None:
        """See `live.core.asid_watch.AsidWatch.fence`."""
        self._watch.fence()

    def trap_every_change(self) -> None:
        """See `live.core.asid_watch.AsidWatch.trap_every_change`."""
        self._watch.trap_every_change()

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
        elif not self._take_tasks(look, trap, time_ns, late_ns):
            self._take_list(time_ns, TRIGGERS[type(trap)], trap, late_ns)
        if isinstance(trap, AsidChange):
            self._compared_ns = time_ns
        return drained(self.tracker)

    def _take_tasks(self, look: Look, trap: AsidChange | Syscall, time_ns: int, late_ns: int) -> bool:
        """Take in the tasks that the trap is about; False if the whole list has to be read."""
        tasks: Sequence[Task] | None = None
        if look is Look.CALLER and isinstance(trap, Syscall):
            tasks = self._caller(trap)
        elif look is Look.WORDS and isinstance(trap, AsidChange):
            tasks = self._moved(trap)
        if tasks is None:
            return False
        occasion = Occasion(
            time_ns=time_ns,
            trigger=TRIGGERS[type(trap)],
            late_ns=late_ns,
            missed=self.tracker.counts.missed,
        )
        # Who has died has done so since words were last compared.
        dead = replace(occasion, late_ns=max(late_ns, time_ns - self._compared_ns))
        runs = trap.new_asid if isinstance(trap, AsidChange) else trap.asid
        for task in tasks:
            complete = self._watch.corrected_task(task, trap)
            standing = trap.held and self._watch.runs_in(task, runs)
            self.tracker.receive_task(complete, dead if task.dead else occasion, standing=standing)
            self._watch.take_task(complete, trap)
        self._watch.take(trap)
        return True

    def _caller(self, trap: Syscall) -> Sequence[Task] | None:
        caller = self._rules.caller(trap)
        task = self._rules.task(caller) if caller else None
        return (task,) if task is not None and self._watch.runs_in(task, trap.asid) else None

    def _moved(self, trap: AsidChange) -> Sequence[Task] | None:
        addresses, more = self._watch.moved(trap)
        marked = [self._rules.task(address) for address in addresses]
        newest = self._rules.newest(self._watch.identity_at) if more else ()
        if newest is None:
            return None
        found = []
        for address, task in zip(addresses, marked, strict=True):
            if task is None or task.identity != self._watch.identity_at(address):
                return None
            found.append(task)
        return [*found, *newest]

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
        self._compared_ns = time_ns
        self._watch.take_list(snapshot, trap)


def stepper_of(mode: str, system: OperatingSystem, machine: Architecture) -> Stepper | AsidStepper:
    """What takes the steps in a mode.  Raises `MemoryFault` or `SymbolsMissing`."""
    return AsidStepper(system, machine, AsidMode(mode)) if mode in MODES else Stepper(system)
