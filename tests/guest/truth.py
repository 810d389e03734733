"""The guest's own record of processes: what really happened, from the kernel's own tracer.

Theory of operation
-------------------
The scheduler's trace events (sched_process_fork/exec/exit) are not enough to judge events of *processes*:
they do not say whether a task is a thread or a process, whose parent it is after CLONE_PARENT, when the
thread *group* is dead, or with which status. So three kprobes are placed where the kernel itself has that
knowledge, with each member that is read named in a table; offsets come from the BTF of the running kernel,
read in the guest by programs/layout.c, so that nothing here leans on the code under test. The functions are
external, and the same from 5.10 to 7.2:

``new``   wake_up_new_task(task)            every new task, thread or process, complete, before it first runs
``exec``  proc_exec_connector(task)         after a successful exec: the new comm, the leader's pid
``exit``  taskstats_exit(task, group_dead)  in do_exit, where it is known if it is the group's last thread

The status that the parent gets is wait_task_zombie()'s: ``signal->group_exit_code`` if SIGNAL_GROUP_EXIT is
set, else the leader's ``exit_code``. Both are final when the last thread passes the third probe.

``sched_process_exec`` is recorded too: it knows the file name. Other events are recorded on request, as text.

Starting and stopping the record starts no process in the guest: the command channel writes the switch itself.
When a record ends, its probes and events stay switched on, and only the ring buffer does not take them any
more.  The kernel patches its code to switch them, and a guest of QEMU may hang if another vCPU runs that code
(patching.py shows it).

Known warts
-----------
- Time is the guest's CLOCK_BOOTTIME, printed in microseconds; the order of lines is the exact one.
- A process that is a kernel worker's child (call_usermodehelper) counts as a kernel thread at its start until
  5.x, and not any more when it has exec'ed: ``TruthProcess.kernel`` is what it was last.

Loss: an overrun of the trace buffer, an event that the ring buffer dropped, and a kprobe that was missed are
counted by the kernel. Any of them, and any line that cannot be parsed, raises TruthLost.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import TruthLost

if TYPE_CHECKING:
    from .guest import Guest

_TRACING = "/sys/kernel/tracing"
_SIGNAL_GROUP_EXIT = 4  # include/linux/sched/signal.h
_PF_KTHREAD = 0x200000  # include/linux/sched.h

# name -> (function, [(field, type, path)]): a path is an argument's register, then members to follow.
_TASK = "task_struct"
_LEADER = ("di", f"{_TASK}.group_leader")
_PROBES: dict[str, tuple[str, list[tuple[str, str, tuple[str, ...]]]]] = {
    "new": (
        "wake_up_new_task",
        [
            ("pid", "s32", ("di", f"{_TASK}.pid")),
            ("tgid", "s32", ("di", f"{_TASK}.tgid")),
            ("ppid", "s32", ("di", f"{_TASK}.real_parent", f"{_TASK}.tgid")),
            ("flags", "u32", ("di", f"{_TASK}.flags")),
            ("start", "u64", ("di", f"{_TASK}.start_boottime")),
            ("comm", "string", ("di", f"{_TASK}.comm")),
        ],
    ),
    "exec": (
        "proc_exec_connector",
        [
            ("pid", "s32", ("di", f"{_TASK}.pid")),
            ("tgid", "s32", ("di", f"{_TASK}.tgid")),
            ("ppid", "s32", ("di", f"{_TASK}.real_parent", f"{_TASK}.tgid")),
            ("start", "u64", ("di", f"{_TASK}.start_boottime")),
            ("comm", "string", ("di", f"{_TASK}.comm")),
        ],
    ),
    "exit": (
        "taskstats_exit",
        [
            ("pid", "s32", ("di", f"{_TASK}.pid")),
            ("tgid", "s32", ("di", f"{_TASK}.tgid")),
            ("ppid", "s32", (*_LEADER, f"{_TASK}.real_parent", f"{_TASK}.tgid")),
            ("dead", "s32", ("si",)),
            ("flags", "u32", ("di", f"{_TASK}.flags")),
            ("own", "s32", ("di", f"{_TASK}.exit_code")),
            ("leader", "s32", (*_LEADER, f"{_TASK}.exit_code")),
            ("group", "s32", ("di", f"{_TASK}.signal", "signal_struct.group_exit_code")),
            ("sflags", "u32", ("di", f"{_TASK}.signal", "signal_struct.flags")),
            ("start", "u64", (*_LEADER, f"{_TASK}.start_boottime")),
            ("comm", "string", (*_LEADER, f"{_TASK}.comm")),
        ],
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthEvent:
    """Common to all: when (ns of CLOCK_BOOTTIME), on which CPU, and which task was running there."""

    ts: int
    cpu: int
    by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthFork(TruthEvent):
    """A new task; a new process if ``pid == tgid``. ``ppid`` is its real parent's tgid."""

    pid: int
    tgid: int
    ppid: int
    kernel: bool
    start: int
    comm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthExec(TruthEvent):
    """A successful exec. *comm* is the new one; *filename* is what was asked for: a script itself."""

    tgid: int
    ppid: int
    start: int
    comm: str
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthExit(TruthEvent):
    """A task ended; if *group_dead*, the process did, and *status* is what wait(2) tells its parent."""

    pid: int
    tgid: int
    ppid: int
    kernel: bool
    group_dead: bool
    own_code: int
    status: int
    start: int
    comm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthOther(TruthEvent):
    """An event that was recorded on request: its name and its text."""

    name: str
    text: str


@dataclass(slots=True, kw_only=True)
class TruthProcess:
    """One process, as far as the record has it."""

    tgid: int
    start: int
    """start_boottime of its leader in ns: with the tgid, its identity."""
    ppid: int
    """Its parent's tgid, as last seen: 1 if it was adopted."""
    comm: str
    """As last seen."""
    parent: TruthProcess | None = None
    """Who had started it, if that one is in the record."""
    kernel: bool = False
    forked: TruthFork | None = None
    """None if it was there before the record began."""
    execs: list[TruthExec] = field(default_factory=list)
    ended: TruthExit | None = None

    @property
    def status(self) -> int | None:
        """As of wait(2), if it ended."""
        return self.ended.status if self.ended else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A finished record."""

    events: tuple[TruthEvent, ...]

    def processes(self, *, kernel: bool = False) -> list[TruthProcess]:
        """Every process that started, exec'ed or ended within the record, in order of appearance.

        Threads are no processes; kernel threads are left out unless *kernel*.
        """
        current: dict[int, TruthProcess] = {}  # by tgid: the process that has it now
        everything: list[TruthProcess] = []

        def known(event: TruthFork | TruthExec | TruthExit) -> TruthProcess:
            process = current.get(event.tgid)
            # An exec by a thread keeps the pair: it takes over the leader's start times (fs/exec.c:
            # de_thread).
            if process is None or process.start != event.start:
                process = TruthProcess(
                    tgid=event.tgid,
                    start=event.start,
                    ppid=event.ppid,
                    comm=event.comm,
                    parent=current.get(event.ppid),
                )
                current[event.tgid] = process
                everything.append(process)
            process.comm, process.ppid = event.comm, event.ppid
            return process

        for event in self.events:
            match event:
                case TruthFork() if event.pid == event.tgid:
                    process = known(event)
                    process.forked, process.kernel = event, event.kernel
                case TruthExec():
                    process = known(event)
                    process.execs.append(event)
                    process.kernel = False
                case TruthExit() if event.group_dead:
                    process = known(event)
                    process.ended, process.kernel = event, event.kernel
        return [process for process in everything if kernel or not process.kernel]

    def below(self, tgid: int) -> list[TruthProcess]:
        """Of ``processes()``: the one that the lab started as *tgid*, then all it started, at any depth.

        Whoever lost its parent and was adopted belongs to it all the same.
        """
        family: list[TruthProcess] = []
        ids: set[int] = set()
        for process in self.processes():
            # Within one record a pid may have been used again, but only one of its users is a child of pid 1
            # at birth.
            root = not family and process.tgid == tgid and process.forked and process.forked.ppid == 1
            if root or id(process.parent) in ids:
                ids.add(id(process))
                family.append(process)
        return family


class Recorder:
    """``with guest.truth() as recorder: ...``, then ``recorder.truth``."""

    def __init__(self, guest: Guest, probes: list[str], *, events: Iterable[str], buffer_kib: int) -> None:
        self._guest = guest
        self._probes = probes
        self._others = tuple(events)
        self._buffer = buffer_kib
        self._truth: Truth | None = None
        self._missed_before = 0

    @property
    def truth(self) -> Truth:
        if self._truth is None:
            raise TruthLost("the record is still running: read it after the with block")
        return self._truth

    def __enter__(self) -> Recorder:
        self._guest.run(
            f"set -e; cd {_TRACING}; echo 0 > tracing_on; "
            # The kernel does not allocate anew what has the right size already.
            f"echo {self._buffer} > buffer_size_kb; "
            "echo boot > trace_clock; echo > trace; echo 0 > options/irq-info"
        )
        if not self._read("kprobe_events"):
            for line in self._probes:
                self._guest.push(line.encode(), f"{_TRACING}/kprobe_events")
        self._missed_before = _missed(self._read("kprobe_profile"))
        recorded, wanted = set(self._read("set_event").replace(":", "/").split()), set(self._events())
        switches = [f"echo 0 > events/{name}/enable; " for name in sorted(recorded - wanted)]
        switches += [f"echo 1 > events/{name}/enable; " for name in sorted(wanted - recorded)]
        self._guest.run(f"set -e; cd {_TRACING}; {''.join(switches)}:")
        self._switch("1")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # what went wrong matters more, and the guest may be gone
        self._switch("0")
        counts = self._read("per_cpu/cpu*/stats")
        missed = _missed(self._read("kprobe_profile")) - self._missed_before
        packed = self._guest.start(f"gzip -1 -c {_TRACING}/trace").wait(600).data
        self._guest.run(f"echo > {_TRACING}/trace")
        text = zlib.decompress(packed, wbits=31).decode(errors="surrogateescape")
        events = tuple(parse(text))
        expected = _recorded(counts, missed, self._buffer)
        if len(text.splitlines()) - text.count("\n#") - text.startswith("#") != expected:
            raise TruthLost(
                f"the trace has {len(text.splitlines())} lines for {expected} events: record it again"
            )
        self._truth = Truth(events=events)

    def _events(self) -> Iterator[str]:
        yield "sched/sched_process_exec"
        yield from self._others
        yield from (f"pse/{name}" for name in _PROBES)

    def _read(self, name: str) -> str:
        return self._guest.run(f"cat {_TRACING}/{name}").output

    def _switch(self, value: str) -> None:
        self._guest.push(value.encode(), f"{_TRACING}/tracing_on")


def definitions(offsets: dict[str, int]) -> list[str]:
    """The kprobes, one line each, in the syntax of Documentation/trace/kprobetrace.rst."""
    lines = []
    for name, (function, fields) in _PROBES.items():
        words = [f"p:pse/{name} {function}"]
        for label, kind, (register, *members) in fields:
            fetch = f"%{register}"
            for member in members:
                fetch = f"+{offsets[member]}({fetch})"
            words.append(f"{label}={fetch}:{kind}")
        lines.append(" ".join(words) + "\n")
    return lines


def members() -> list[str]:
    """Every STRUCT.MEMBER that the kprobes read."""
    return sorted({name for _, fields in _PROBES.values() for _, _, path in fields for name in path[1:]})


def _missed(profile: str) -> int:
    """How many times a probe was passed and could not be recorded, since it was made."""
    return sum(int(n) for n in re.findall(r"(?m)^\s*\S+\s+\d+\s+(\d+)\s*$", profile))


def _recorded(counts: str, missed: int, buffer_kib: int) -> int:
    """How many events the ring buffers hold, by their own count; raises TruthLost if any was lost."""
    lost = sum(int(n) for n in re.findall(r"(?m)^(?:overrun|commit overrun|dropped events): (\d+)", counts))
    if lost or missed:
        raise TruthLost(
            f"the guest's trace lost {lost} events and missed {missed} probes with {buffer_kib} KiB a CPU: "
            "record with a larger buffer_kib, or in smaller portions"
        )
    return sum(int(n) for n in re.findall(r"(?m)^entries: (\d+)", counts))


_LINE = re.compile(r"\s*.*-(\d+)\s+\[(\d+)\]\s+(\d+)\.(\d{6}): (\w+): (.*)")
_EXECUTED = re.compile(r"filename=(.*) pid=(\d+) old_pid=(\d+)")


def parse(text: str) -> Iterator[TruthEvent]:
    """Parse the text of tracefs' ``trace``. Raises TruthLost on a line that is not understood."""
    filenames: dict[int, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise TruthLost(f"the guest's trace has a line that is not understood: {line!r}")
        by, cpu, seconds, micros, name, rest = found.groups()
        common = {"by": int(by), "cpu": int(cpu), "ts": (int(seconds) * 1_000_000 + int(micros)) * 1000}
        if name == "sched_process_exec":
            executed = _EXECUTED.fullmatch(rest)
            if not executed:
                raise TruthLost(f"the guest's trace has a line that is not understood: {line!r}")
            filenames[int(executed[2])] = executed[1]
        elif name in _PROBES:
            yield _event(name, _fields(rest, line), common, filenames)
        else:
            yield TruthOther(name=name, text=rest, **common)


def _fields(rest: str, line: str) -> dict[str, str]:
    # comm is the last one, and may hold anything that a process chose to call itself.
    found = re.fullmatch(r"\(\S+\) (.*?) comm=\"(.*)\"", rest)
    if not found:
        raise TruthLost(f"the guest's trace has a line that is not understood: {line!r}")
    return {**dict(word.split("=", 1) for word in found[1].split()), "comm": found[2]}


def _event(name: str, got: dict[str, str], common: dict[str, int], filenames: dict[int, str]) -> TruthEvent:
    text = got.pop("comm")
    number = {key: int(value, 0) for key, value in got.items()}
    tgid, ppid, start = number["tgid"], number["ppid"], number["start"]
    if name == "exec":
        filename = filenames.pop(tgid, "")
        return TruthExec(tgid=tgid, ppid=ppid, start=start, comm=text, filename=filename, **common)
    kernel = bool(number["flags"] & _PF_KTHREAD)
    if name == "new":
        return TruthFork(
            pid=number["pid"], tgid=tgid, ppid=ppid, kernel=kernel, start=start, comm=text, **common
        )
    return TruthExit(
        pid=number["pid"],
        tgid=tgid,
        ppid=ppid,
        kernel=kernel,
        group_dead=bool(number["dead"]),
        own_code=number["own"],
        status=number["group"] if number["sflags"] & _SIGNAL_GROUP_EXIT else number["leader"],
        start=start,
        comm=text,
        **common,
    )
