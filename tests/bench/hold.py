"""For how long a vCPU is held at an event, every field of it complete, in each trap mode.

``wake``: from the trap until we look at it; ``step``: reading memory and making the events;
``held``: all of it, until the vCPU may go on.  A new thread's trap is held too, but is no event.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from live.cli import _hurry
from live.core.events import Event, Process, ProcessExec
from live.core.traps import Trap, TrapSource
from live.session import Session
from live.stepper import Stepper
from tests.accuracy.run import trappable
from tests.guest import Guest, GuestSpec

COUNTS = {"plugin": 500, "gdbstub": 30}
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


def measure(
    guest: Guest, mode: str, commands: Sequence[list[str]]
) -> tuple[dict[str, Held], list[Event], float]:
    """Times by what the trap meant, the events, and the longest hold (ms)."""
    found: dict[str, Held] = {}
    events: list[Event] = []
    _hurry()
    with Session(str(guest.monitor)) as session:
        stepper = Stepper(session.kernel, session.processes)
        source = session.choose(mode).source
        assert source is not None
        try:
            source.arm(stepper.points.request)
            stepper.look(time.time_ns(), "attach")
            for command in commands:
                job = guest.start(command)
                while (trap := source.wait(0.1)) is not None or job.running:
                    if trap is not None:
                        _one(trap, stepper, source, found, events)
        finally:
            source.close()
    return found, events, max(max(each.held) for each in found.values()) / 1000


def _one(
    trap: Trap, stepper: Stepper, source: TrapSource, found: dict[str, Held], events: list[Event]
) -> None:
    begin = time.monotonic_ns()
    new = stepper.trap(trap, time.time_ns(), 0)
    stepped = time.monotonic_ns()
    source.resume(trap)
    end = time.monotonic_ns()
    times = found.setdefault(type(new[0]).__name__ + f" x{len(new)}" if new else "no event", Held())
    times.wake.append((begin - trap.time_ns) / 1000)
    times.step.append((stepped - begin) / 1000)
    times.held.append((end - trap.time_ns) / 1000)
    events += new


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
        for mode, count in COUNTS.items():
            work = [["fork-exec", str(count)], ["threads", str(count)]]
            found, events, longest = measure(guest, mode, work)
            there, wanted = complete(events)
            title = f"{mode}: {len(events)} events, {there} of {wanted} fields, longest hold {longest:.1f} ms"
            table = Table(title=title)
            for name in (
                "trap",
                "count",
                "held median us",
                "held p99",
                "wake median",
                "step median",
                "step p99",
            ):
                table.add_column(name, justify="left" if name == "trap" else "right")
            for name, each in sorted(found.items()):
                values = (
                    statistics.median(each.held),
                    _quantile(each.held, 0.99),
                    statistics.median(each.wake),
                    statistics.median(each.step),
                    _quantile(each.step, 0.99),
                )
                table.add_row(name, str(len(each.held)), *(f"{value:,.0f}" for value in values))
            Console(width=110).print(table)


if __name__ == "__main__":
    main()
