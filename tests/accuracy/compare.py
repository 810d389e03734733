"""Compares the JSON lines that a user gets with what really happened, event by event.

An identity is (pid, start_boottime); both sides have it.  Per identity the sequence of events is
compared: one fork, any number of execs, one end.  What cannot be compared is not counted as right:
identities that began within the record and are unknown to it are false.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.guest.truth import Truth, TruthExec, TruthProcess

Document = Mapping[str, Any]


@dataclass(slots=True)
class Row:
    """Counts of one kind of event.  ``wrong`` are seen events with a wrong field; ``notes`` name some.
    ``unknown``: ends that are shown as `gone`: how they came about was not seen, and is not said.

    ``raced``: seen, and right, with the parent that it had when it was trapped; it died on another
    vCPU before the guest's own probe, which comes a moment later, looked.  Or with the one that it has
    now: its parent's end was out before, and its children were given away between the probe and our look.
    In asid mode that look is when a child first runs.
    """

    kind: str
    true: int = 0
    seen: int = 0
    missed: int = 0
    false: int = 0
    wrong: int = 0
    raced: int = 0
    unknown: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Nothing missed, nothing false, nothing wrong."""
        return not (self.missed or self.false or self.wrong or self.unknown)

    def note(self, text: str) -> None:
        """Keep the first few details, for the message of a failing test."""
        if len(self.notes) < 5:
            self.notes.append(text)


@dataclass(slots=True)
class Score:
    """The rows; ``ordered``: within each process the order is the guest's; ``same_order``: over all of them.

    The latter need not be so even on one vCPU: a kernel that is preemptible may run another task
    between the first instruction of a function, where we trap it, and the guest's own probe there.
    """

    rows: dict[str, Row]
    ordered: bool
    same_order: bool
    groups: dict[str, Row] = field(default_factory=dict)
    """The same counts, all kinds together, by what the processes belong to."""

    @property
    def exact(self) -> bool:
        """Every row is exact, and every process's events are in order."""
        return self.ordered and all(row.exact for row in self.rows.values())

    @property
    def exact_of_processes(self) -> bool:
        """The same, whatever is shown of kernel threads, and is not known of an end."""
        return self.ordered and all(
            not (row.missed or row.false or row.wrong) for name, row in self.rows.items() if name != KERNEL
        )

    def __str__(self) -> str:
        """A small table, with the first details of what is off."""
        lines = [f"{'':6}{'true':>8}{'seen':>8}{'missed':>8}{'false':>8}{'wrong':>8}"]
        for row in self.rows.values():
            counts = (row.true, row.seen, row.missed, row.false, row.wrong)
            lines.append(f"{row.kind:6}" + "".join(f"{count:8}" for count in counts))
            lines += [f"       {note}" for note in row.notes]
        lines.append(f"order within each process {'right' if self.ordered else 'WRONG'}")
        return "\n".join([*lines, f"order over all {'as in the guest' if self.same_order else 'differs'}"])


Identity = tuple[int, int]
_GONE = (None, None, False)
"""Exit code, signal, core flag of an end of which nothing is known."""
_Whats = list[tuple[object, ...]]
_HOLD_NS = 1_000_000_000
"""The longest time between our trap at a function and the guest's own probe there: the hold limit."""
_SAME_NS = 100_000
"""Probes on two vCPUs may be out of order by as much."""
_INIT = 1
"""Who gets the orphans of the lab's guests."""
_KINDS = ("fork", "exec", "end")
KERNEL = "kernel"
"""The row of what kernel threads do, all kinds together: they have no asid, and make no system call."""


class _Lives:
    """What each identity went through: its events by kind, and all events in their order."""

    def __init__(self) -> None:
        self.events: dict[Identity, dict[str, list[tuple[object, ...]]]] = {}
        self.order: list[tuple[str, Identity]] = []
        self.orphans: dict[Identity, dict[tuple[str, int], set[object]]] = {}
        """Of an event soon before or after its parent's end, by its kind and number: that one, and init."""
        self.kernel: set[Identity] = set()
        """Those that are kernel threads, or a kernel worker's child, and never become a process."""

    def add(self, kind: str, identity: Identity, *what: object) -> None:
        self.of(identity)[kind].append(what)
        self.order.append((kind, identity))

    def of(self, identity: Identity) -> dict[str, list[tuple[object, ...]]]:
        return self.events.setdefault(identity, {kind: [] for kind in _KINDS})


def compare(
    truth: Truth, documents: Iterable[Document], groups: Mapping[Identity, str] | None = None
) -> Score:
    """Score the documents of one run that began before the record did and ended after it.

    ``groups`` says of some identities what they belong to: each group is counted on its own, too.
    """
    real, observed = _real(truth), _observed(documents)
    rows = {kind: Row(kind) for kind in (*_KINDS, KERNEL)}
    parts: dict[str, Row] = {}
    begin, end = truth.events[0].ts, truth.events[-1].ts
    for identity in sorted(real.events.keys() | observed.events.keys()):
        if identity in real.events:
            group = (groups or {}).get(identity)
            part = parts.setdefault(group, Row(group)) if group is not None else None
            for kind in _KINDS:
                row = rows[KERNEL if identity in real.kernel else kind]
                for each in (row, part) if part is not None else (row,):
                    pairs = real.of(identity)[kind], observed.of(identity)[kind]
                    _count(each, kind, identity, *pairs, parents=real.orphans.get(identity, {}))
        elif begin <= identity[1] <= end:
            rows["fork"].false += 1
            rows["fork"].note(f"{identity} never was")
    happened = set(real.order)
    order = [event for event in observed.order if event in happened]
    ordered = _by_process(order, real.kernel) == _by_process(real.order, real.kernel)
    return Score(rows, ordered, order == real.order, parts)


def _by_process(order: list[tuple[str, Identity]], kernel: set[Identity]) -> dict[Identity, list[str]]:
    kinds: dict[Identity, list[str]] = {}
    for kind, identity in order:
        if identity not in kernel:
            kinds.setdefault(identity, []).append(kind)
    return kinds


def _count(
    row: Row,
    kind: str,
    identity: Identity,
    real: _Whats,
    seen: _Whats,
    *,
    parents: dict[tuple[str, int], set[object]],
) -> None:
    row.true += len(real)
    row.seen += min(len(real), len(seen))
    row.missed += max(0, len(real) - len(seen))
    # What began or ended outside the record is true, but unknown to it.
    row.false += max(0, len(seen) - max(len(real), 1)) if kind != "exec" else max(0, len(seen) - len(real))
    if len(real) > len(seen):
        row.note(f"{identity}: {real}, but saw {seen}")
    for number, (wanted, shown) in enumerate(zip(real, seen, strict=False)):
        got = shown[: len(wanted)]
        adopted = kind != "end" and {got[0], wanted[0]} == parents.get((kind, number))
        if wanted != got and adopted and got[1:] == wanted[1:]:
            row.raced += 1
        elif wanted != got:
            unknown = kind == "end" and got == _GONE
            row.unknown += unknown
            row.wrong += not unknown
            row.note(f"{identity}: {got}, should be {wanted}")


def _real(truth: Truth) -> _Lives:
    placed: list[tuple[int, str, Identity, tuple[object, ...]]] = []
    index = {id(event): number for number, event in enumerate(truth.events)}
    for process in truth.processes(kernel=True):
        identity = (process.tgid, process.start)
        if process.forked is not None:
            forked = process.forked
            placed.append((index[id(forked)], "fork", identity, (forked.ppid, forked.comm)))
        for executed in process.execs:
            what = (executed.ppid, executed.comm, *_image(executed))
            placed.append((index[id(executed)], "exec", identity, what))
        if process.ended is not None:
            status = process.ended.status
            signal = status & 0x7F
            how = (None, signal, bool(status & 0x80)) if signal else (status >> 8 & 0xFF, None, False)
            placed.append((index[id(process.ended)], "end", identity, how))
    lives = _Lives()
    ends = {(p.tgid, p.start): p.ended.ts for p in truth.processes(kernel=True) if p.ended is not None}
    for process in truth.processes(kernel=True):
        parent = process.parent
        if process.kernel or _is_helper(process):
            lives.kernel.add((process.tgid, process.start))
        ended = ends.get((parent.tgid, parent.start)) if parent is not None else None
        if parent is not None and ended is not None:
            near = {
                ("exec", number): {parent.tgid, _INIT}
                for number, executed in enumerate(process.execs)
                if -_SAME_NS <= executed.ts - ended < _HOLD_NS
            }
            if process.forked is not None and ended - process.forked.ts < _HOLD_NS:
                near["fork", 0] = {parent.tgid, _INIT}
            lives.orphans[(process.tgid, process.start)] = near
    for _, kind, identity, what in sorted(placed, key=lambda event: event[0]):
        lives.add(kind, identity, *what)
    return lives


def _is_helper(process: TruthProcess) -> bool:
    """Whether it is a kernel worker's child that never execs: no kernel thread any more since 5.19 (kernel
    commit 343f4c49f243), and without an mm.
    """
    forked = process.forked
    return forked is not None and forked.comm.startswith("kworker/") and not process.execs


def _image(executed: TruthExec) -> tuple[object, ...]:
    """(executable, first word of argv) of an exec whose file name says both: one of the lab's programs."""
    directory, name = posixpath.split(executed.filename)
    if directory == "/bin" and name != "stress-ng":  # a link to busybox, under its own name
        return ("/bin/busybox", name)
    return (executed.filename, name) if directory == "/programs" else ()


def _observed(documents: Iterable[Document]) -> _Lives:
    lives = _Lives()
    for document in documents:
        process, own = document["process"], document["pse"]
        identity = (process["pid"], own["start_boottime"])
        what = (process["parent"]["pid"], process["name"])
        match own["event"], own["reason"]:
            case "ProcessStart", "fork":
                lives.add("fork", identity, *what)
            case "ProcessStart", "exec":
                # Counted here and not at ProcessExec: a look may find a process only after its exec.
                word = posixpath.basename((process.get("args") or [""])[0])
                lives.add("exec", identity, *what, process.get("executable"), word)
            case "ProcessEnd", reason if reason != "exec":
                signal = own.get("signal", {}).get("number")
                code = None if signal is not None else process.get("exit_code")
                lives.add("end", identity, code, signal, own.get("core", False))
    return lives
