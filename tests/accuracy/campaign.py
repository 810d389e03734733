"""One case: a guest, one `pse watch --json` over all of it, and the guest's record in portions.

Theory of operation
-------------------
The guest's trace buffer is finite, so the record is made portion by portion: start it, run some
workloads to their end, wait until `pse watch` has said all it has to say, stop it, compare.  The
watch goes on all the time.  What happens between two portions (reading the trace buffer takes a
few processes) is in nobody's record and is judged by the invariants only: over the *whole* stream,
every process starts once and ends at most once, and nothing ends that has not started.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from live.watch.watchers import PROOF_S
from tests.accuracy.compare import KERNEL, Document, Identity, Row, Score, compare
from tests.accuracy.matrix import Case, Work, chunks
from tests.accuracy.run import trappable
from tests.guest import Guest, TruthLost
from tests.guest.truth import Truth, TruthFork, TruthProcess
from tests.guest.workloads import ends_of
from tests.watch import Watch

_QUIET_S = 0.4
_JOB_TIMEOUT = 900


@dataclass(slots=True, kw_only=True)
class Result:
    """The counts of one case.  ``known`` is how often a workload did exactly what its table says."""

    case: Case
    release: str = ""
    qemu: str = ""
    mitigation: str = ""
    date: str = ""
    seconds: float = 0.0
    processes: int = 0
    threads: int = 0
    portions: int = 0
    lost: int = 0
    """Portions that could not be judged, because the guest's own record had a gap."""
    known: list[int] = field(default_factory=lambda: [0, 0])
    """Workloads that did exactly what their table says, by the guest's record, of how many."""
    ordered: bool = True
    rows: dict[str, Row] = field(default_factory=dict)
    groups: dict[str, Row] = field(default_factory=dict)
    invariants: int = 0
    """How often an invariant was broken, over the whole stream."""
    missed: int = 0
    """As `pse watch` said itself."""
    unexpected: int = 0
    torn: int = 0
    held_us: float | None = None
    summary: str = ""

    @property
    def exact(self) -> bool:
        """Nothing missed, false or wrong; the order right; no invariant broken."""
        # Without an asid and a system call, a kernel thread is seen by chance where those are trapped.
        # And a process that dies and is reaped without an asid change may leave nothing but its absence.
        if self.case.mode == "asid":
            seen = [row for name, row in self.rows.items() if name != KERNEL]
            rows = not any(row.missed or row.false or row.wrong for row in seen)
        else:
            rows = all(row.exact for row in self.rows.values())
        return rows and self.ordered and not self.invariants and not self.lost

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Result:
        """From JSON."""
        values = dict(document)
        values["case"] = Case(**values["case"])
        for name in ("rows", "groups"):
            values[name] = {key: Row(**row) for key, row in values[name].items()}
        return cls(**values)


def run_case(case: Case, processes: int, *, with_stress: bool = True) -> Result:
    """Torture one guest until it has started ``processes`` processes."""
    result = Result(case=case, date=datetime.date.today().isoformat())
    began = time.monotonic()
    with trappable(case.spec(stress=with_stress)) as guest:
        result.release, result.qemu = guest.kernel.release, guest.emulator.version
        result.mitigation = guest.run("cat /sys/devices/system/cpu/vulnerabilities/meltdown").output.strip()
        if case.pti != ("PTI" in result.mitigation):
            raise AssertionError(f"{case}: the guest says of Meltdown: {result.mitigation}")
        with Watch(str(guest.monitor), "--mode", case.mode, "--kernel-threads") as watch:
            for portion in chunks(case, processes, with_stress=with_stress):
                _portion(guest, watch, portion, result)
                if result.processes >= processes or result.lost > 3:
                    break
            time.sleep(PROOF_S + 1)  # the last proof by the kernel's counters comes when the guest is idle
        result.invariants = len(broken_invariants(watch.documents))
        _summary(watch, result)
    result.seconds = time.monotonic() - began
    return result


def _portion(guest: Guest, watch: Watch, portion: Sequence[Work], result: Result) -> None:
    first = len(watch.documents)
    jobs: list[tuple[Work, int]] = []
    result.portions += 1
    try:
        with guest.truth(buffer_kib=16384) as recorder:
            for work in portion:
                job = guest.start(list(work.argv))
                job.wait(_JOB_TIMEOUT, check=False)
                jobs.append((work, job.wait_pid()))
            quiet(watch)
            last = len(watch.documents)
    except TruthLost as error:
        result.lost += 1
        result.summary += f"{error}\n"
        return
    truth = recorder.truth
    families = family(truth, [pid for _, pid in jobs])
    groups: dict[Identity, str] = {}
    for (work, _), members in zip(jobs, families, strict=True):
        groups.update({(each.tgid, each.start): work.row for each in members})
        if work.expected is not None:
            result.known[1] += 1
            result.known[0] += _as_expected(work, members)
    _add(result, compare(truth, watch.documents[first:last], groups))
    forks = [event for event in truth.events if isinstance(event, TruthFork)]
    started = sum(event.pid == event.tgid for event in forks)
    result.processes += started
    result.threads += len(forks) - started


def quiet(watch: Watch, seconds: float = _QUIET_S) -> None:
    """Wait until the watch has written nothing for a while: it holds the guest while it has work to do."""
    time.sleep(seconds)
    while True:
        before = len(watch.documents)
        time.sleep(seconds)
        if len(watch.documents) == before:
            return


def family(truth: Truth, roots: Sequence[int]) -> list[list[TruthProcess]]:
    """For each pid that the lab started, in order: its process and all that descend from it."""
    owner: dict[int, int] = {}
    families: list[list[TruthProcess]] = [[] for _ in roots]
    for process in truth.processes():
        number = owner.get(id(process.parent)) if process.parent is not None else None
        if number is None and process.forked is not None and process.forked.ppid == 1:
            # A pid may be used again within one record: the first job that still lacks its process.
            number = next(
                (at for at, pid in enumerate(roots) if pid == process.tgid and not families[at]), None
            )
        if number is not None:
            owner[id(process)] = number
            families[number].append(process)
    return families


def _as_expected(work: Work, members: list[TruthProcess]) -> bool:
    wanted = work.expected
    if wanted is None or not members:
        return False
    program, *children = members
    execs = sum(len(child.execs) for child in children)
    did = (len(program.execs), program.status, len(children), execs, ends_of([c.status for c in children]))
    return did == (1, 0, wanted.starts, wanted.execs, wanted.ends)


def _add(result: Result, score: Score) -> None:
    result.ordered &= score.ordered
    for rows, new in ((result.rows, score.rows), (result.groups, score.groups)):
        for name, row in new.items():
            total = rows.setdefault(name, Row(name))
            for count in ("true", "seen", "missed", "false", "wrong", "raced", "unknown"):
                setattr(total, count, getattr(total, count) + getattr(row, count))
            for note in row.notes:
                total.note(note)


def broken_invariants(documents: Sequence[Document]) -> list[str]:
    """Over the whole stream: one start, one end at most, each after a start; execs in threes."""
    state: dict[Identity, str] = {}
    broken = []
    for document in documents:
        own = document["pse"]
        identity = (document["process"]["pid"], own["start_boottime"])
        before = state.get(identity, "absent")
        what = {"ProcessStart": "start", "ProcessExec": "exec", "ProcessEnd": "end"}[own["event"]]
        step = f"{what} {own['reason']}" if what != "exec" else what
        allowed = {
            "start running": ("absent",),
            "start fork": ("absent",),
            "end exec": ("live",),
            "exec": ("replaced",),
            # From absent: found in execve when we attached, or by a look after its exec.
            "start exec": ("announced", "absent"),
        }.get(step, ("live",))
        if before not in allowed:
            broken.append(f"{identity}: {step} while {before}")
        after = {"end exec": "replaced", "exec": "announced"}
        state[identity] = after.get(step, "live" if what == "start" else "dead")
    return broken


def _summary(watch: Watch, result: Result) -> None:
    line = watch.errors.splitlines()[-1]
    result.missed = watch.missed
    for name, pattern in (("unexpected", r"(\d+) unexpected"), ("torn", r"(\d+) torn")):
        found = re.search(pattern, line)
        setattr(result, name, int(found[1]) if found else 0)
    held = re.search(r"held for (\d+) us each", line)
    result.held_us = float(held[1]) if held else None
    result.summary += line
