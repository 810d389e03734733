"""For how long a vCPU is held at an event, every field of it complete, in each trap mode.

``wake``: from the trap until we look at it; ``step``: reading memory and making the events; ``held``: how
long the vCPU then really waited, at the trap or at the fence behind it, as the source has counted it.
A new thread's trap is held too, but is no event.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.table import Table

from live.cli.watch import hurry
from live.core.events import Event, Process, ProcessExec
from live.core.traps import Trap, TrapSource
from live.watch.asid_stepper import TRIGGERS
from live.watch.session import Session
from live.watch.stepper import Steps
from tests.accuracy.run import trappable
from tests.guest import Guest, GuestSpec
from tests.guest.command import run_command

WATCHES = {
    "plugin": ("plugin", True, 500),
    "plugin, with callbacks": ("plugin", False, 500),
    "asid": ("asid", False, 500),
    "gdbstub": ("gdbstub", False, 30),
}
"""Mode, whether fences are used, and how many processes."""
_FIELDS = (
    "exe",
    "args",
    "cwd",
    "uid",
    "gid",
    "euid",
    "egid",
    "ns_pid",
    "pgid",
    "sid",
    "namespaces",
    "cgroup",
)


@dataclass(slots=True)
class Held:
    """Times of one kind of trap, in microseconds."""

    wake: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Measured:
    """Times by what the trap meant, and the events."""

    times: dict[str, Held] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    _before: tuple[Held | None, int] = (None, 0)

    def held_until_now(self, held_ns: int, last: Held | None) -> None:
        """What vCPUs waited since the last call was for the last trap: there is one vCPU."""
        held, before = self._before
        if held is not None:
            held.held.append((held_ns - before) / 1000)
        self._before = last, held_ns


def measure(guest: Guest, mode: str, commands: Sequence[list[str]], *, fences: bool) -> Measured:
    """Watch while the commands run in the guest."""
    found = Measured()
    with Session(str(guest.monitor)) as session:
        hurry()
        choice = session.choose(mode)
        stepper, source = session.stepper(choice), choice.source
        assert source is not None
        try:
            request = stepper.request or session.request(source)
            source.arm(replace(request, fences=session.os.points().fences) if fences else request)
            stepper.snapshot(time.time_ns(), "attach")
            if stepper.request is not None:
                source.arm(stepper.request)
            for command in commands:
                job = guest.start(command)
                while (trap := source.wait(0.1)) is not None or job.running:
                    if trap is not None:
                        _one(trap, stepper, source, found)
            found.held_until_now(source.counters.held_ns, None)
        finally:
            source.close()
    return found


def _one(trap: Trap, stepper: Steps, source: TrapSource, found: Measured) -> None:
    waited = source.counters.held_ns
    begin = time.monotonic_ns()
    new = stepper.trap(trap, time.time_ns(), 0)
    if stepper.request is not None:
        source.arm(stepper.request)
    stepped = time.monotonic_ns()
    source.resume(trap)
    name = type(new[0]).__name__ + f" x{len(new)}" if new else "no event"
    if stepper.request is not None:
        name = f"{name}, {TRIGGERS[type(trap)]}"
    times = found.times.setdefault(name, Held())
    times.wake.append((begin - trap.time_ns) / 1000)
    times.step.append((stepped - begin) / 1000)
    found.held_until_now(waited, times)
    found.events += new


def complete(events: Sequence[Event]) -> tuple[int, int]:
    """(fields that are there, fields that there should be) of the events of processes."""
    there = wanted = 0
    for event in events:
        process: Process = event.new if isinstance(event, ProcessExec) else event.process
        if not process.kernel:
            wanted += len(_FIELDS)
            there += sum(getattr(process, name) not in (None, ()) for name in _FIELDS)
    return there, wanted


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def main() -> None:
    """Boot, measure, print."""
    with trappable(GuestSpec()) as guest:
        for name, (mode, fences, count) in WATCHES.items():
            work = [["fork-exec", str(count)], ["threads", str(count)]]
            found = measure(guest, mode, work, fences=fences)
            there, wanted = complete(found.events)
            longest = max(max(each.held) for each in found.times.values()) / 1000
            fields = f"{there} of {wanted} fields"
            title = f"{name}: {len(found.events)} events, {fields}, longest hold {longest:.1f} ms"
            table = Table(title=title)
            for column in (
                "trap",
                "count",
                "held median us",
                "held p99",
                "wake median",
                "step median",
                "step p99",
            ):
                table.add_column(column, justify="left" if column == "trap" else "right")
            for kind, each in sorted(found.times.items()):
                values = (
                    statistics.median(each.held),
                    _quantile(each.held, 0.99),
                    statistics.median(each.wake),
                    statistics.median(each.step),
                    _quantile(each.step, 0.99),
                )
                table.add_row(kind, str(len(each.held)), *(f"{value:,.0f}" for value in values))
            Console(width=110).print(table)


if __name__ == "__main__":
    run_command(main)
