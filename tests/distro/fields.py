"""Compares the fields of the JSON lines with what each process's own /proc said.

Theory of operation
-------------------
A look (looks.py) belongs to one image of one process: the guest's tracer says when it exec'ed, and looks and
record have the same clock.  So have the events of one process the same order as its images.  Then:

- The start by exec of an image that was held for its look is compared with just that look: the image has not
  run an instruction of its own.
- Without such a look, as for static programs, the first look at that image is taken.  So is for the start by
  fork the first look at the new process before it exec'ed, and for an end the last look at its last image.
  Where there is none, one at its parent, which it is a copy of.
- A field that is not what that look says, but what another look at the same image says (or at the parent, if
  it has not exec'ed), is *moved*: it changed in between.
- If it is in no look, and the process was not held, and it made a system call that changes such a field
  between the event and the look (calls.py), the field was changed *later*, and nothing can be said.
- All else is *wrong*.

A value that /proc has and the event has not is *unreadable*, unless it may have changed like that.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.distro.calls import Calls
from tests.distro.looks import TICK_NS, Look
from tests.guest.truth import Truth

Document = Mapping[str, Any]
PATHS = ("executable", "working_directory")
Identity = tuple[int, int]
FIELDS = {
    "name": ("process", "name"),
    "executable": ("process", "executable"),
    "working_directory": ("process", "working_directory"),
    "args": ("process", "args"),
    "parent.pid": ("process", "parent", "pid"),
    "real_user.id": ("process", "real_user", "id"),
    "user.id": ("user", "id"),
    "real_group.id": ("process", "real_group", "id"),
    "group.id": ("group", "id"),
    "group_leader.pid": ("process", "group_leader", "pid"),
    "session_leader.pid": ("process", "session_leader", "pid"),
    "ns_pid": ("pse", "ns_pid"),
    "cgroup": ("pse", "cgroup"),
    **{
        f"namespaces.{name}": ("pse", "namespaces", name)
        for name in ("pid", "mnt", "net", "uts", "ipc", "cgroup", "user")
    },
}
"""Where an event has each field."""
_NEVER = 1 << 62
_OWN = frozenset({"parent.pid", "ns_pid"})
"""What a new process has not from its parent."""


@dataclass(slots=True)
class Count:
    """Of one field.  ``held``: how many were compared with a look at which the process stood still."""

    compared: int = 0
    held: int = 0
    right: int = 0
    moved: int = 0
    later: int = 0
    unreadable: int = 0
    wrong: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Of what is wrong or unreadable: by event and program."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first of each kind."""


@dataclass(slots=True)
class Fields:
    """The counts by field; ``compared`` of all ``events`` had a look, ``held`` one at the same moment."""

    counts: dict[str, Count]
    events: int = 0
    compared: int = 0
    held: int = 0

    @property
    def wrong(self) -> int:
        """Of all fields."""
        return sum(count.wrong for count in self.counts.values())


@dataclass(slots=True, kw_only=True)
class _Life:
    """One process: who started it and when, its execs and end, and the looks at each of its images."""

    pid: int
    forked: int
    execs: list[int]
    ended: int
    parent: Identity | None
    looks: dict[int, list[Look]] = field(default_factory=lambda: defaultdict(list))

    def image(self, look: Look, calls: Calls) -> int | None:
        """The number of the image that a look was at; None if it was in execve meanwhile."""
        before, after = (bisect.bisect_right(self.execs, moment) for moment in (look.begin, look.end))
        if before != after:
            return None
        if before < len(self.execs):
            # The record has an exec when it is done; /proc may have shown the new image a while before.
            began = calls.last_exec(self.pid, self.execs[before])
            if began is not None and began <= look.end:
                return None
        return before


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What a document is compared with."""

    looks: Sequence[Look]
    """At its own image; the nearest one first."""
    inherited: Sequence[Look]
    held: Look | None
    """The one at the same moment; it is the first one then."""
    moment: int
    calls: Calls
    pids: tuple[int, ...]
    reason: str

    def of(self, name: str) -> list[Look]:
        """The looks that have this field; the nearest one first."""
        looks = self.looks if name in _OWN else [*self.looks, *self.inherited]
        return [look for look in looks if name in look.values]


def compare(truth: Truth, looks: Iterable[Look], documents: Iterable[Document]) -> Fields:
    """Count, over one run: ``documents`` begin before the record does, and end after it."""
    calls = Calls(truth)
    lives = {
        (each.tgid, each.start): _Life(
            pid=each.tgid,
            forked=each.forked.ts if each.forked is not None else 0,
            execs=[executed.ts for executed in each.execs],
            ended=each.ended.ts if each.ended is not None else _NEVER,
            parent=(each.parent.tgid, each.parent.start) if each.parent is not None else None,
        )
        for each in truth.processes()
    }
    by_ticks = {(pid, start // TICK_NS): life for (pid, start), life in lives.items()}
    for look in looks:
        life = by_ticks.get((look.pid, look.start))
        number = life.image(look, calls) if life is not None else None
        if life is not None and number is not None:
            life.looks[number].append(look)
    result = Fields({name: Count() for name in FIELDS})
    images: Counter[Identity] = Counter()
    for document in documents:
        own = document["pse"]
        identity = (document["process"]["pid"], own["start_boottime"])
        event, reason = own["event"], own["reason"]
        if identity not in lives or own.get("kernel_thread") or reason == "running":
            continue
        images[identity] += (event, reason) == ("ProcessStart", "exec")
        if event != "ProcessExec" and (event, reason) != ("ProcessEnd", "exec"):
            result.events += 1
            _compare(result, document, _known(lives, identity, images[identity], reason, calls))
    return result


def _known(
    lives: Mapping[Identity, _Life], identity: Identity, number: int, reason: str, calls: Calls
) -> _Known:
    life = lives[identity]
    if reason == "fork":
        moment = life.forked
    elif reason == "exec":
        moment = life.execs[number - 1] if number <= len(life.execs) else _NEVER
    else:
        moment = life.ended
    looks = sorted(life.looks.get(number, []), key=lambda look: abs(look.begin - moment))
    held = min((look for look in looks if look.held), key=lambda look: look.begin, default=None)
    if reason != "exec":
        held = None
    elif held is not None:
        looks = [held, *(look for look in looks if look is not held)]
    inherited: list[Look] = []
    pids = (identity[0],)
    if number == 0 and life.parent in lives:
        inherited = [look for each in lives[life.parent].looks.values() for look in each]
        inherited.sort(key=lambda look: abs(look.begin - life.forked))
        pids = (identity[0], life.parent[0])
    return _Known(
        looks=looks, inherited=inherited, held=held, moment=moment, calls=calls, pids=pids, reason=reason
    )


def _compare(result: Fields, document: Document, known: _Known) -> None:
    if not known.looks and not known.inherited:
        return
    result.compared += 1
    result.held += known.held is not None
    for name, path in FIELDS.items():
        # A process's parent may have died before it: that is compared at the start only.
        if known.of(name) and (name != "parent.pid" or known.reason in ("fork", "exec")):
            _count(result.counts[name], name, _get(document, path), known, document)


def _count(count: Count, name: str, got: Any, known: _Known, document: Document) -> None:
    looks = known.of(name)
    nearest = looks[0]
    count.compared += 1
    count.held += nearest is known.held
    verdict = _verdict(name, got, [look.values[name] for look in looks])
    if verdict in ("wrong", "unreadable") and nearest is not known.held:
        span = sorted((nearest.begin, nearest.end, known.moment))
        if known.calls.changed(name, known.pids, span[0], span[-1]):
            verdict = "later"
    setattr(count, verdict, getattr(count, verdict) + 1)
    if verdict not in ("wrong", "unreadable"):
        return
    kind = f"{verdict}, {known.reason}, {document['process'].get('executable')}"
    count.kinds[kind] += 1
    if kind not in count.examples:
        outside = nearest.outside.get(name)
        seen = f" (from outside its root: {_short(outside)})" if outside else ""
        pid = document["process"]["pid"]
        at_once = "held" if nearest is known.held else f"{(nearest.begin - known.moment) / 1e6:+.3f} ms"
        count.examples[kind] = (
            f"pid {pid}: {_short(got)}, /proc ({at_once}): {_short(nearest.values[name])}{seen}"
        )


def _verdict(name: str, got: Any, values: Sequence[Any]) -> str:
    if same(name, got, values[0]):
        return "right"
    if got is None:
        return "unreadable"
    return "moved" if any(same(name, got, value) for value in values) else "wrong"


def same(name: str, got: Any, wanted: Any) -> bool:
    """Whether a field says what /proc says; bytes that are no UTF-8 may be written as ``\\xff``.

    /proc has no mark for a path that cannot be reached from the process's root.
    """
    if name in PATHS and isinstance(got, str):
        got = got.removeprefix("(unreachable)")
    if got == wanted:
        return True
    if name == "args":
        return (
            isinstance(got, list)
            and isinstance(wanted, list)
            and [*map(_plain, got)] == [*map(_plain, wanted)]
        )
    return isinstance(got, str) and isinstance(wanted, str) and _plain(got) == _plain(wanted)


def of_boot(documents: Iterable[Document], booted: int, boot_id: str, hostname: str) -> dict[str, Count]:
    """What all events of a boot have alike: its id, the name of the host, and one entity_id for each process.

    Of the first ``booted`` those that have neither, as the guest had none yet, are *moved*.
    """
    entities: dict[Identity, str] = {}
    counts = {"boot.id": Count(), "entity_id": Count(), "hostname": Count()}
    for number, document in enumerate(documents):
        process, host = document["process"], document["host"]
        identity = process["pid"], document["pse"]["start_boottime"]
        entity = entities.setdefault(identity, process["entity_id"])
        for name, got, wanted in (
            ("boot.id", host.get("boot", {}).get("id"), boot_id),
            ("entity_id", process["entity_id"], entity),
            ("hostname", host.get("hostname"), hostname),
        ):
            count = counts[name]
            count.compared += 1
            early = number < booted and got in (None, "(none)")
            verdict = "moved" if early else _verdict(name, got, [wanted])
            setattr(count, verdict, getattr(count, verdict) + 1)
            if verdict in ("wrong", "unreadable"):
                kind = f"{verdict}, {document['pse']['reason']}, {process.get('executable')}"
                count.kinds[kind] += 1
                count.examples.setdefault(kind, f"pid {process['pid']}: {got!r}, in the guest: {wanted!r}")
    return counts


def _plain(text: str) -> str:
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def _get(document: Document, path: Sequence[str]) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 160 else f"{text[:110]}...{text[-30:]} ({len(text)} characters)"
