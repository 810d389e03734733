"""Bugs that were found on real guests, each kept as a small recording of a real guest in which it would show.

``python -m tests.recording.traces [NAME ...]`` makes them anew, in ``tests/data/traces/``: ``NAME.pse`` is
what `pse record` wrote, its symbol table reduced to what a replay asks for; ``NAME.jsonl`` are the events
since the attach, as neutral JSON lines.  ``story`` is what a reader should see at once; kernel threads are
left out of it, and pids are letters.  One is kept only if it tells its story.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from live.core.events import ProcessEnd, ProcessExec, StartReason
from live.recording.codec import dumps, encode_event
from live.recording.opening import open_recording
from tests.guest import GuestSpec
from tests.guest.command import run_command
from tests.recording.make import DATA
from tests.recording.reduce import reduce_symbols
from tests.recording.run import record, trappable

TRACES = DATA / "traces"
LIMIT = 2048 << 10
"""Bytes of all of them together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One bug."""

    wrong: str
    """What went wrong, here or in a peer."""
    work: tuple[tuple[str, ...], ...]
    """Commands that run in the guest, one after another, while it is recorded."""
    story: tuple[str, ...]
    """Lines of `story`."""
    mode: str = "plugin"
    before: str = ":"
    """Shell line that prepares the guest, unrecorded."""
    after: str = ":"
    missed: int = 0
    """Tasks that came and went unseen, as the last event counts them."""
    stopped: float = 0.0
    """Seconds for which the recorder is stopped (SIGSTOP) while the commands run."""


def shell(line):
    return (("sh", "-c", line),)


def begins(name, who="A"):
    """The lab's agent starts a program."""
    return (
        f"{who} start fork init",
        f"{who} end exec init",
        f"{who} exec init -> {name}",
        f"{who} start exec {name}",
    )


def execs(who, old, new):
    return (f"{who} end exec {old}", f"{who} exec {old} -> {new}", f"{who} start exec {new}")


BUGS = {
    "vfork-without-exec": Trace(
        wrong="a diff of task lists at asid changes saw none of them: parent and child share one asid",
        work=(("vfork-exit", "1"),),
        story=(
            *begins("vfork-exit"),
            "B start fork vfork-exit",
            "B end exit vfork-exit 3",
            "A end exit vfork-exit 0",
        ),
    ),
    "exec-from-a-thread": Trace(
        wrong="the thread that execs takes its leader's place on the list: it looked like another process",
        work=(("exec-thread", "1"),),
        story=(
            *begins("exec-thread"),
            "B start fork exec-thread",
            *execs("B", "exec-thread", "true"),
            "B end exit true 0",
            "A end exit exec-thread 0",
        ),
    ),
    "leader-exits-early": Trace(
        wrong="the leader's exit was taken for the end of its process, while a thread lived on",
        work=(("leader-exit", "1", "5"),),
        story=(
            *begins("leader-exit"),
            "B start fork leader-exit",
            "B end exit leader-exit 6",
            "A end exit leader-exit 0",
        ),
    ),
    "failed-exec": Trace(
        wrong="a failed exec was shown as a new image",
        work=(("exec-fail", "1"),),
        story=(
            *begins("exec-fail"),
            "B start fork exec-fail",
            "B end exit exec-fail 7",
            "A end exit exec-fail 0",
        ),
    ),
    "killed": Trace(
        wrong="exit_code >> 8 alone makes `exit 0` of a SIGKILL",
        work=(("killed", "1"),),
        story=(
            *begins("killed"),
            "B start fork killed",
            "B end signal killed by signal 9",
            "A end exit killed 0",
        ),
    ),
    "usermode-helper": Trace(
        wrong="a kernel worker without PF_KTHREAD (from 5.19) was taken for a process before its exec",
        before="echo '|/programs/true %p' > /proc/sys/kernel/core_pattern",
        work=shell("ulimit -c unlimited; segv 1"),
        after="echo core > /proc/sys/kernel/core_pattern",
        story=(
            *begins("sh"),
            *execs("A", "sh", "segv"),
            "B start fork segv",
            "C exec kworker -> true",
            "C start exec true",
            "C end exit true 0",
            "B end signal segv by signal 11, core dumped",
            "A end exit segv 0",
        ),
    ),
    "pid-reuse": Trace(
        wrong="two processes with one pid, one after the other, were taken for one",
        work=shell(
            "/programs/true & p=$!; wait; echo $((p - 1)) > /proc/sys/kernel/ns_last_pid; "
            "/programs/true & wait"
        ),
        story=(
            *begins("sh"),
            "B start fork sh",
            *execs("B", "sh", "true"),
            "B end exit true 0",
            "C start fork sh, with the pid of B",
            *execs("C", "sh", "true"),
            "C end exit true 0",
            "A end exit sh 0",
        ),
    ),
    "renamed": Trace(
        wrong="an end was shown under the name that the process had at its start",
        work=shell("printf renamed > /proc/$$/comm; exit 3"),
        story=(*begins("sh"), "A end exit renamed 3"),
    ),
    "hold-ran-out": Trace(
        wrong="a trap that was looked at after its vCPU had gone on named another task by then",
        work=(("fork-exit", "10"), ("sleep", "4"), ("fork-exit", "1")),
        stopped=3.0,
        missed=11,
        story=(
            "A start exec sleep",
            "A end exit sleep 0",
            *begins("fork-exit", "B"),
            "C start fork fork-exit",
            "C end exit fork-exit 0",
            "B end exit fork-exit 0",
        ),
    ),
    "found-by-a-look": Trace(
        wrong="poll mode: an exec moves no counter, and a process was shown under the name from before it",
        work=(("slow", "1"),),
        mode="poll",
        story=(
            "A start exec slow",
            "B start fork slow",
            *execs("B", "slow", "sleep"),
            "B end exit sleep 0",
            "A end exit slow 0",
        ),
    ),
}


def story(events):
    """One line an event since the attach, without kernel threads."""
    letters, lines = {}, []
    for event in events:
        process = event.new if isinstance(event, ProcessExec) else event.process
        if process.kernel or getattr(event, "reason", None) is StartReason.RUNNING:
            continue
        before = [letter for known, letter in letters.items() if known.pid == process.pid]
        who = letters.setdefault(process.identity, chr(ord("A") + len(letters)))
        if isinstance(event, ProcessExec):
            old = event.old.comm.partition("/")[0] if event.old.kernel else event.old.comm
            lines.append(f"{who} exec {old} -> {event.new.comm}")
        elif isinstance(event, ProcessEnd):
            lines.append(f"{who} end {event.reason.value} {process.comm}{_status(event.status)}")
        else:
            again = f", with the pid of {before[0]}" if before and who not in before else ""
            lines.append(f"{who} start {event.reason.value} {process.comm}{again}")
    return tuple(lines)


def _status(status):
    if status is None:
        return ""
    text = f" {status.code}" if status.signal is None else f" by signal {status.signal}"
    return text + (", core dumped" if status.core else "")


def since_attach(path):
    """The recorded events of a trace, without those that say what ran already."""
    with open_recording(path) as recording:
        events = [one.event for one in recording.events()]
    return [event for event in events if getattr(event, "reason", None) is not StartReason.RUNNING]


def golden(events):
    """Neutral JSON lines."""
    return "".join(dumps(encode_event(event)).decode() + "\n" for event in events)


def make(guest, name):
    """Record it, and keep it if it tells its story."""
    trace = BUGS[name]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.pse"
        guest.run(trace.before)
        try:
            options = ("--mode", trace.mode, "--level", "19", "--kernel-threads")
            record(guest, path, *options, work=trace.work, stopped=trace.stopped)
        finally:
            guest.run(trace.after)
        reduce_symbols(path)
        events = since_attach(path)
        print(f"{name}: {path.stat().st_size} bytes", *story(events), sep="\n  ")
        if (story(events), events[-1].occasion.missed) != (trace.story, trace.missed):
            raise SystemExit(f"{name} does not tell its story ({events[-1].occasion.missed} missed)")
        (TRACES / f"{name}.pse").write_bytes(path.read_bytes())
        (TRACES / f"{name}.jsonl").write_text(golden(events))


def main(names):
    """Make the traces of these names, or all."""
    TRACES.mkdir(exist_ok=True)
    with trappable(GuestSpec(memory=256, extra=("-name", "traces"))) as guest:
        for name in names or BUGS:
            make(guest, name)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
