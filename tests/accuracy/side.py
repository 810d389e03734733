"""``python -m tests.accuracy.side``: asid mode and the kernel's own functions, in one guest at once.

One source traps both, every vCPU stands while either is read, and each has a tracker of its own.  So where
the two differ, it is by what they can see, and not by what the guest happened to do.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from live.core.events import Event, Identity, Process, ProcessEnd, ProcessExec, ProcessStart, is_kernels
from live.core.snapshot import Snapshot
from live.core.traps import AsidChange, Syscall, Trap, TrapSource
from live.watch.asid_stepper import AsidStepper, stepper_of
from live.watch.session import Session
from live.watch.stepper import Stepper
from tests.accuracy.matrix import Case, known
from tests.accuracy.options import KERNELS
from tests.accuracy.run import trappable
from tests.guest import Guest
from tests.guest.channel import Job
from tests.guest.command import run_command

_IDLE_S = 0.005
_PROOF_S = 0.05
_QUIET_S = 0.5


@dataclass(slots=True)
class Side:
    """What one of the two has seen: events by process, and what it counted."""

    name: str
    stepper: Stepper | AsidStepper
    lives: dict[Identity, list[Event]] = field(default_factory=dict)
    tids: set[tuple[int, int]] = field(default_factory=set)
    """Every task, process or thread, that its tracker was told of."""

    def __post_init__(self) -> None:
        """Listen to what the tracker is told."""
        tracker = self.stepper.tracker
        created, receive_tasks = tracker.created, tracker.receive_tasks

        def told(tid: int, start: int) -> None:
            self.tids.add((tid, start))
            created(tid, start)

        def listed(snapshot: Snapshot, caught_ns: int | None = None) -> None:
            self.tids |= snapshot.tids
            receive_tasks(snapshot, caught_ns)

        tracker.created, tracker.receive_tasks = told, listed  # type: ignore[method-assign]

    def take(self, events: Sequence[Event]) -> None:
        """Note events, in their order a process; those of kernel threads are left out."""
        for event in events:
            if not is_kernels(event):
                process = event.new if isinstance(event, ProcessExec) else event.process
                self.lives.setdefault(process.identity, []).append(event)

    @property
    def count(self) -> int:
        """Of events."""
        return sum(map(len, self.lives.values()))


class Both:
    """Functions and asids, trapped by one source."""

    def __init__(self, session: Session, source: TrapSource) -> None:
        """Nothing is armed yet."""
        self._source = source
        self.functions = Side("functions", Stepper(session.os))
        self.asids = Side("asid", stepper_of("asid", session.os, session.machine))
        self._code = session.os.points().addresses
        self._proved = 0.0

    def arm(self) -> None:
        """Trap what both want."""
        wanted = self.asids.stepper.request
        assert wanted is not None
        self._source.arm(replace(wanted, code=self._code))

    def look(self, trigger: str) -> None:
        """Both look at the task list."""
        for side in (self.functions, self.asids):
            side.take(side.stepper.snapshot(time.time_ns(), trigger))
        self.arm()
        self._proved = time.monotonic()

    def drain(self, job: Job) -> None:
        """Take traps until the job is done and none comes any more."""
        last = time.monotonic()
        while job.running or time.monotonic() - last < _QUIET_S:
            trap = self._source.wait(_IDLE_S)
            if trap is not None:
                last = time.monotonic()
                self._take(trap)
            elif time.monotonic() - self._proved >= _PROOF_S:
                self.look("proof")

    def _take(self, trap: Trap) -> None:
        side = self.asids if isinstance(trap, AsidChange | Syscall) else self.functions
        side.take(side.stepper.trap(trap, time.time_ns(), time.monotonic_ns() - trap.time_ns))
        self.arm()
        self._source.resume(trap)


def watch(guest: Guest, commands: Sequence[Sequence[str]]) -> tuple[Side, Side]:
    """Both at once while the commands run: (functions, asids)."""
    with Session(str(guest.monitor)) as session, contextlib.closing(session.choose("asid")) as choice:
        assert choice.source is not None
        both = Both(session, choice.source)
        both.arm()
        both.look("attach")
        for command in commands:
            both.drain(guest.start(list(command)))
        both.look("proof")
    return both.functions, both.asids


def what(event: Event) -> str:
    """The kind of an event, as in the contract."""
    if isinstance(event, ProcessExec):
        return "exec"
    return f"{'start' if isinstance(event, ProcessStart) else 'end'}({event.reason.value})"


def process_of(event: Event) -> Process:
    """Whom it is about; after it, for an exec."""
    return event.new if isinstance(event, ProcessExec) else event.process


def differences(one: Side, other: Side) -> Counter[str]:
    """How often the two differ, by kind."""
    found: Counter[str] = Counter()
    for identity in one.lives.keys() | other.lives.keys():
        events, others = one.lives.get(identity, []), other.lives.get(identity, [])
        if list(map(what, events)) != list(map(what, others)):
            found[
                f"{one.name}: {' '.join(map(what, events))}; {other.name}: {' '.join(map(what, others))}"
            ] += 1
            continue
        for event, again in zip(events, others, strict=True):
            for each in fields(Process):
                values = getattr(process_of(event), each.name), getattr(process_of(again), each.name)
                if values[0] != values[1]:
                    missing = " is unknown to one" if None in values else ""
                    found[f"{what(event)}: {each.name}{missing}"] += 1
            if (
                isinstance(event, ProcessEnd)
                and isinstance(again, ProcessEnd)
                and event.status != again.status
            ):
                found[f"{what(event)}: status"] += 1
    return found


def main(argv: list[str] | None = None) -> int:
    """Run and print; 1 if an event is seen by one of the two only."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.side", description=__doc__)
    parser.add_argument("--kernel", choices=KERNELS, default="6.1")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--processes", type=int, default=10_000, metavar="N", help="at least so many")
    options = parser.parse_args(argv)
    gc.disable()
    case = Case(kernel=options.kernel, mode="asid", cpus=options.cpus)
    # A round of the workloads makes about 900 processes, and 28 more for each one that is asked for.
    count = max(2, (options.processes - 900) // 28)
    with trappable(case.spec(stress=False)) as guest:
        began = time.monotonic()
        functions, asids = watch(guest, [work.argv for work in known(options.kernel, count)])
        took = time.monotonic() - began
    found = differences(functions, asids)
    lives = f"{len(functions.lives):,} processes by functions, {len(asids.lives):,} by asids"
    print(f"{case}: {lives}, {took:.0f} s")
    for side in (functions, asids):
        print(f"  {side.name}: {side.count:,} events; {side.stepper.counts}")
    for text, number in found.most_common():
        print(f"  {number:6} {text}")
    if not found:
        print("  no difference in any event, field or order")
    missed, really = asids.stepper.counts.missed, len(functions.tids - asids.tids)
    print(f"  tasks that asids show nothing of: {missed} as counted, {really} by the functions (threads too)")
    return 1 if any(";" in text for text in found) or missed != really else 0


if __name__ == "__main__":
    run_command(main)
