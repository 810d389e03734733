"""Bugs of counting that only a race shows, each kept as a recording of a guest in which that race happened.

``python -m tests.recording.races [NAME ...]`` (in a checkout with its history) records guests again and
again until a recording shows the bug: the tracker from before the fix gives another result on it than the
one with the fix, and today's agrees with the guest's own tracer.  Steps are then left out as long as all
this holds: that a look or a trap is missing must never make the result wrong.  What remains is kept as
``NAME.pse``, and beside it in ``NAME.json`` the (pid, start) of every task that the guest created
meanwhile, as its tracer says.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import live.watch.stepper
from live.core.errors import TargetError
from live.core.events import ProcessEnd, ProcessExec, ProcessStart, StartReason
from live.core.tracker import Tracker
from live.linux.points import LifecyclePoints
from live.recording.live_memory import RecordingMemory
from live.recording.opening import open_recording
from live.recording.past_memory import ReplayMemory
from live.recording.record import Recorder
from live.recording.replay import Replay, system_of
from live.recording.stepper import RecordingStepper
from live.recording.writer import Writer
from live.watch.session import Session
from live.watch.stepper import Stepper
from tests.guest import GuestSpec
from tests.guest.command import run_command
from tests.guest.truth import TruthFork
from tests.recording.reduce import reduce_symbols
from tests.recording.run import trappable
from tests.recording.traces import TRACES

NAP = 1.05
"""Seconds; a hold is over after one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One bug, and the work in which its race may happen."""

    wrong: str
    fixed: str
    """The commit that corrected `live.core.tracker`."""
    shows: str = "missed"
    """The field of `Result` that was wrong."""
    work: str
    mode: str = "poll"
    cpus: int = 4
    naps: int = 0
    """How often, with a few events between, the watcher does nothing until holds have run out."""
    lasts: float = 1.5
    """Seconds for which it is recorded."""


RACES = {
    "torn-found-and-gone": Race(
        wrong="what only a torn look had found was shown, and counted as missed, too",
        fixed="de3d494",
        work="for i in 1 2 3 4; do fork-exit 20 & done; wait",
    ),
    "torn-inside-execve": Race(
        wrong="what only a torn look had found, inside execve, was neither shown nor counted",
        fixed="6b4599d",
        work="for i in 1 2 3 4; do fork-exec 30 & done; wait",
    ),
    "listed-before-counted": Race(
        wrong="a task that the kernel had listed, and not counted yet, made the next look miss one too many",
        fixed="9a1296a",
        work="burn 600 & burn 600 & burn 600 & burn 600 & fork-exit 600; wait",
        lasts=3.0,
    ),
    "end-behind-a-look": Race(
        wrong="a look found a process gone, and the trap of its death made it start and end once more",
        fixed="9a1296a",
        shows="starts",
        mode="plugin",
        work="for i in 1 2 3 4; do fork-exit 500 & done; wait",
        naps=8,
        lasts=14.0,
    ),
    "death-behind-a-look": Race(
        wrong="what a look had counted as missed was shown by the trap of its death, and still counted",
        fixed="b24b91d",
        mode="plugin",
        work="for i in 1 2 3 4; do fork-exit 500 & done; wait",
        naps=8,
        lasts=14.0,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a watch says in the end: the identities of the processes that it showed, and its counts."""

    seen: frozenset
    starts: int
    execs: int
    ends: int
    missed: int

    def true(self, created):
        """Whether the guest's tracer agrees: what was not seen was missed, and nothing was seen twice."""
        agreed = self.seen <= created and self.missed == len(created - self.seen)
        return agreed and self.starts - self.execs == len(self.seen)


class Part(Replay):
    """A replay of some of the steps of a recording."""

    def __init__(self, recording, kept):
        super().__init__(recording)
        self.kept = kept

    def _take(self, stepper, step):
        return super()._take(stepper, step) if self.kept is None or step.id in self.kept else []


def result_of(path, tracker=Tracker, kept=None):
    """`Result` of those steps of a recording, without what ran before it, by a tracker of that class."""
    made = []

    def make(*arguments):
        made.append(tracker(*arguments))
        return made[-1]

    with open_recording(path) as recording, mock.patch.object(live.watch.stepper, "Tracker", make):
        events = [event for _, event in Part(recording, kept).events()]
    events = [event for event in events if getattr(event, "reason", None) is not StartReason.RUNNING]
    starts = [event for event in events if isinstance(event, ProcessStart)]
    return Result(
        seen=frozenset(tuple(event.process.identity) for event in starts if not known(event, made[-1])),
        starts=len(starts),
        execs=sum(isinstance(event, ProcessExec) for event in events),
        ends=sum(isinstance(event, ProcessEnd) for event in events),
        missed=made[-1].counts.missed,
    )


def known(event, tracker):
    """Whether a process ran already when the recording began."""
    return event.process.identity in (tracker._attached or ())


def tracker_of(revision):
    """The class `Tracker` as it was in a commit."""
    command = ["git", "show", f"{revision}:live/core/tracker.py"]
    source = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    module = types.ModuleType(f"tracker_of_{revision.strip('^')}")
    sys.modules[module.__name__] = module
    exec(compile(source, f"{revision}:live/core/tracker.py", "exec"), module.__dict__)
    return module.Tracker


def record(guest, race, path):
    """Record the work; returns the identities of the tasks that the guest created meanwhile."""
    with (
        guest.truth(buffer_kib=8192) as truth,
        Session(str(guest.monitor)) as session,
        Recorder(session, path, mode=race.mode, interval=0.001, level=1, force=True) as recorder,
    ):
        if race.mode == "plugin":
            # `pse record` holds every vCPU at every trap; `pse watch` lets them run on to a fence.
            watcher = recorder._watcher
            watcher.request = replace(watcher.request, fences=LifecyclePoints(session.os.kernel).fences)
        job, running, seen, naps = None, set(), 0, race.naps
        for event in recorder.events(duration=race.lasts):
            job = job or guest.start(race.work)
            if getattr(event, "reason", None) is StartReason.RUNNING:
                running.add(tuple(event.process.identity))
                continue
            seen += 1
            if naps and not seen % 30:
                naps -= 1
                time.sleep(NAP)
        finished = not job.running
        job.wait(60)
    if not finished:
        raise SystemExit(f"the work takes longer than {race.lasts} s: what is created later is not recorded")
    return {(e.pid, e.start) for e in truth.truth.events if isinstance(e, TruthFork)} - running


def shortest(steps, shows):
    """A few of the steps that still show it: chunks are left out, half as large each time (ddmin)."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if shows(fewer):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


class _Steps:
    """The memory of a replay, for a recorder that says at the beginning of a step, too, that it refreshes."""

    flat = None

    def __init__(self, recording):
        self._memory = ReplayMemory(recording)
        self.segments = self._memory.segments
        self.read = self._memory.read
        self._entered = False

    def enter(self, step):
        self._memory.enter(step)
        self._entered = True

    def refresh(self):
        if not self._entered:
            self._memory.refresh()
        self._entered = False


def write_part(path, kept, target):
    """Write those steps into a recording of their own."""
    with open_recording(path) as recording:
        source, steps = _Steps(recording), recording.steps()
        memory = RecordingMemory(source)
        writer = Writer(target, recording.header, recording.symbols(), force=True, level=19)
        with writer:
            setup = next(steps)
            source.enter(setup)
            memory.begin()
            system = system_of(recording, memory)
            writer.step("setup", setup.time_ns, memory.end())
            again = RecordingStepper(Stepper(system), memory, writer)
            for step in steps:
                source.enter(step)
                if step.id not in kept:
                    continue
                if step.kind == "look":
                    again.snapshot(step.time_ns, step.cause)
                else:
                    again.trap(step.trap, step.time_ns, step.late_ns)


def hunt(guest, name, attempts):
    """Record until the race has happened, and keep what shows it."""
    race = RACES[name]
    before, after = tracker_of(f"{race.fixed}^"), tracker_of(race.fixed)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.pse"
        for attempt in range(1, attempts + 1):
            created = record(guest, race, path)

            def shows(kept, created=created):
                try:
                    if not result_of(path, kept=set(kept)).true(created):
                        return False
                    old, new = (result_of(path, one, set(kept)) for one in (before, after))
                except TargetError:  # without a step before it, one reads what was not read live
                    return False
                return getattr(old, race.shows) != getattr(new, race.shows)

            result = result_of(path)
            with open_recording(path) as recording:
                steps = [step.id for step in recording.steps()][1:]
            text = f"{name} {attempt}: {len(steps)} steps, {len(created)} created, {result.missed} missed"
            print(text, f"of {len(created - result.seen)}", flush=True)
            if not result.true(created):
                kept = TRACES.parent / f"{name}.wrong"
                kept.write_bytes(path.read_bytes())
                raise SystemExit(f"today's tracker is wrong on {kept}")
            if shows(steps):
                steps = shortest(steps, shows)
                write_part(path, set(steps), TRACES / f"{name}.pse")
                break
        else:
            raise SystemExit(f"{name}: {attempts} recordings, and the race was in none")
    keep(name, created, before)


def keep(name, created, before):
    """Complete what is kept."""
    path = TRACES / f"{name}.pse"
    reduce_symbols(path)
    (TRACES / f"{name}.json").write_text(json.dumps(sorted(created)) + "\n")
    old, new = result_of(path, before), result_of(path)
    with open_recording(path) as recording:
        count = sum(1 for _ in recording.steps())
    shown = [f"{one.starts} starts, {one.ends} ends, {one.missed} missed" for one in (old, new)]
    print(f"{path.name}: {path.stat().st_size >> 10} KiB, {count} steps; before the fix:", *shown, sep="\n  ")
    assert new.true(created), new
    assert getattr(old, RACES[name].shows) != getattr(new, RACES[name].shows)


def main():
    """Make the recordings of these names, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *RACES])
    parser.add_argument("--attempts", type=int, default=100)
    options = parser.parse_args()
    for name in options.names or RACES:
        with trappable(GuestSpec(memory=256, cpus=RACES[name].cpus, extra=("-name", "races"))) as guest:
            hunt(guest, name, options.attempts)


if __name__ == "__main__":
    run_command(main)
