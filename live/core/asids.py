"""What asid changes and system calls tell of processes: the state machine of an asid.  No I/O, no clock.

Theory of operation
-------------------
A process cannot run before a vCPU has changed to its asid, and does nothing that counts without a system
call.  So a snapshot of the task list is taken at each change to an asid that is not *settled*, and at each
system call in one, while the vCPU is held.  The difference of two snapshots is what has happened
(`live.core.snapshot.difference`).  An asid is settled when its tasks are complete: nothing is to be learnt of
it until one of the watched words moves.

What a trap proves
------------------
* A task that makes a system call is not inside another one.  So at a system call no task of the calling asid
  is transient, whatever its flags say: there an exec is complete, before the first system call of the image.
* A word that has moved: tasks came, went or died since the asid change before, on whatever vCPU.
* A call that may make a process in the *same* asid (vfork): no asid change will tell of that one, so the
  asid is not settled until the child was seen, or the caller has made another call.

``AsidMode.DIFF`` is the control: a snapshot at every asid change, and nothing that an operating system knows.
There a task inside execve is taken for what it looks like; what comes of that is counted as premature.

Blind
-----
A process in the asid of another one that makes no system call, or is made by a system call whose number is
not in the table; one that is made, dies and is reaped between two asid changes on all vCPUs; an image that
makes no system call is seen when something else makes us look.  All of them are counted, from the system's
own counters, or seen late.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType

from live.core.events import Identity, Process
from live.core.machine import Architecture
from live.core.memory import Asid
from live.core.snapshot import Snapshot, Task
from live.core.system import AsidRules
from live.core.traps import Action, AsidChange, Syscall, TrapRequest, Word

MOST_WORDS = 4000
"""Words that are compared at each asid change: those of the newest tasks."""
_MOST_CALLS = 64
"""System calls in an asid after which a child that was announced is not waited for any more, where it
cannot be told who makes them."""


class AsidMode(str, enum.Enum):
    """How much is known beside the task list."""

    ASID = "asid"
    """What the operating system's `AsidRules` say."""
    DIFF = "diff"
    """Nothing."""


class Standing(str, enum.Enum):
    """What is known of one asid."""

    NEW = "new"
    """Nothing; so it is with all that are not kept."""
    PENDING = "pending"
    """One of its tasks is transient: it is inside execve, or not complete yet."""
    SHARED = "shared"
    """A call was made in it that may make another process in it."""
    SETTLED = "settled"
    """Its tasks are complete."""
    FOREIGN = "foreign"
    """No task on the list has it: an address space of the kernel's own."""


class Seen(str, enum.Enum):
    """What a trap, and the snapshot taken at it, show of an asid."""

    COMPLETE = "complete"
    """A task has it, and none that is transient."""
    TRANSIENT = "transient"
    """A transient task has it."""
    UNOWNED = "unowned"
    """No task has it, and the list is whole."""
    SHARES = "shares"
    """A call is being made in it that may make a process in the same asid."""
    ANSWERED = "answered"
    """The process that such a call has made was seen, or its caller goes on."""


STANDINGS: Mapping[tuple[Standing, Seen], Standing] = MappingProxyType(
    {
        (Standing.NEW, Seen.COMPLETE): Standing.SETTLED,
        (Standing.NEW, Seen.TRANSIENT): Standing.PENDING,
        (Standing.NEW, Seen.UNOWNED): Standing.FOREIGN,
        (Standing.PENDING, Seen.COMPLETE): Standing.SETTLED,
        (Standing.PENDING, Seen.UNOWNED): Standing.NEW,
        (Standing.SETTLED, Seen.TRANSIENT): Standing.PENDING,
        (Standing.SETTLED, Seen.UNOWNED): Standing.NEW,
        (Standing.SETTLED, Seen.SHARES): Standing.SHARED,
        (Standing.PENDING, Seen.SHARES): Standing.SHARED,
        (Standing.SHARED, Seen.ANSWERED): Standing.SETTLED,
        (Standing.SHARED, Seen.UNOWNED): Standing.NEW,
        (Standing.FOREIGN, Seen.COMPLETE): Standing.SETTLED,
        (Standing.FOREIGN, Seen.TRANSIENT): Standing.PENDING,
    }
)
"""What becomes of an asid; a pair that is not listed changes nothing."""

_CALM = frozenset({Standing.SETTLED, Standing.FOREIGN})


@dataclass(slots=True)
class _Opened:
    """A call that may make a process in the caller's asid."""

    asid: Asid
    before: frozenset[Identity]
    """Who had the asid then."""
    left: int = _MOST_CALLS


@dataclass(slots=True)
class AsidWatch:
    """Decides what is to be trapped, and what a snapshot at a trap shows."""

    machine: Architecture
    rules: AsidRules
    mode: AsidMode = AsidMode.ASID
    premature: int = 0
    """Tasks that were taken for complete while they were transient; in `AsidMode.DIFF` only."""
    _standings: dict[Asid, Standing] = field(default_factory=dict)
    _opened: dict[int, _Opened] = field(default_factory=dict)
    _marks: dict[int, tuple[Task, tuple[Word, ...]]] = field(default_factory=dict)
    _words: tuple[Word, ...] = ()
    _split: bool = True
    _begun: bool = False

    @property
    def request(self) -> TrapRequest:
        """What is to be trapped from now on."""
        rules = self.rules
        if self.mode is AsidMode.DIFF:
            return TrapRequest(asid_changes=Action.HOLD, split_asids=self._split)
        if not self._begun:
            return TrapRequest(words=tuple(rules.words), split_asids=self._split)
        return TrapRequest(
            settled=rules.kernel.union(
                asid for asid, standing in self._standings.items() if standing in _CALM
            ),
            unsettled_asids=Action.HOLD,
            unsettled_syscalls=Action.HOLD,
            syscalls=rules.syscalls,
            compat_syscalls=rules.compat_syscalls,
            words=self._words,
            split_asids=self._split,
        )

    def corrected(
        self, snapshot: Snapshot, trap: AsidChange | Syscall | None, live: Mapping[Identity, Process]
    ) -> Snapshot:
        """The snapshot, its tasks as transient as they are known to be at this trap; None: at no trap.

        ``live``: the processes that were shown.
        """
        self._look_for_single_tables(snapshot.tasks)
        if self.mode is AsidMode.DIFF:
            hidden = [at for at, task in enumerate(snapshot.tasks) if task.transient and not task.dead]
            self.premature += len(hidden)
            return _with(snapshot, {at: False for at in hidden})
        calling = trap.asid if isinstance(trap, Syscall) else None
        changes: dict[int, bool] = {}
        for at, task in enumerate(snapshot.tasks):
            if task.transient:
                if calling is not None and self._asid(task.asid) == calling:
                    changes[at] = False
            elif task.fresh and task.identity not in live and self.rules.unfinished(task):
                changes[at] = True
        return _with(snapshot, changes)

    def _look_for_single_tables(self, tasks: Iterable[Task]) -> None:
        """Whether a process has one table of pages for both the kernel and itself."""
        if self._split and any(self.machine.asid_of(task.asid) != task.asid for task in tasks):
            self._split = False
            self._standings.clear()

    def _asid(self, root: int) -> Asid:
        return self.machine.asid_of(root, split=self._split)

    def take(
        self, snapshot: Snapshot, trap: AsidChange | Syscall | None, live: Mapping[Identity, Process]
    ) -> None:
        """Take in a corrected snapshot, and the trap at which it was taken."""
        if self.mode is AsidMode.DIFF:
            return
        self._begun = True
        if isinstance(trap, AsidChange) and trap.moved:
            self._forget_foreign()
        owners = self._owners(snapshot.tasks, live)
        self._answer(trap, owners)
        for asid, tasks in owners.items():
            hidden = any(task.transient and not task.dead for task in tasks)
            self._see(asid, Seen.TRANSIENT if hidden else Seen.COMPLETE)
        if not snapshot.torn:
            for asid in self._standings.keys() - owners.keys():
                self._see(asid, Seen.UNOWNED)
            subject = trap.new_asid if isinstance(trap, AsidChange) else trap.asid if trap else None
            if subject is not None and subject not in owners:
                self._see(subject, Seen.UNOWNED)
        if isinstance(trap, Syscall) and self.rules.shares(trap):
            self._see(trap.asid, Seen.SHARES)
            there = frozenset(task.identity for task in owners.get(trap.asid, ()))
            self._opened[self.rules.caller(trap)] = _Opened(trap.asid, there)
        self._keep_marks(snapshot)

    def _see(self, asid: Asid, seen: Seen) -> None:
        before = self._standings.get(asid, Standing.NEW)
        after = STANDINGS.get((before, seen), before)
        if after is Standing.NEW:
            self._standings.pop(asid, None)
        else:
            self._standings[asid] = after

    def _forget_foreign(self) -> None:
        for asid in [asid for asid, one in self._standings.items() if one is Standing.FOREIGN]:
            del self._standings[asid]

    def _owners(self, tasks: Sequence[Task], live: Mapping[Identity, Process]) -> dict[Asid, list[Task]]:
        """The tasks of each asid; of a leader that has left its threads behind: the one announced."""
        owners: dict[Asid, list[Task]] = {}
        for task in tasks:
            root: int = task.asid
            if not root and not task.dead and not task.kernel and task.identity in live:
                root = live[task.identity].asid or 0
            if root:
                owners.setdefault(self._asid(root), []).append(task)
        return owners

    def _answer(self, trap: AsidChange | Syscall | None, owners: Mapping[Asid, Sequence[Task]]) -> None:
        caller = self.rules.caller(trap) if isinstance(trap, Syscall) and self._opened else None
        for who, opened in list(self._opened.items()):
            if isinstance(trap, Syscall) and trap.asid == opened.asid:
                opened.left -= 1
            children = (
                task.identity not in opened.before and (not who or task.parent == who)
                for task in owners.get(opened.asid, ())
            )
            if (who and who == caller) or not opened.left or opened.asid not in owners or any(children):
                del self._opened[who]
                if all(other.asid != opened.asid for other in self._opened.values()):
                    self._see(opened.asid, Seen.ANSWERED)

    def _keep_marks(self, snapshot: Snapshot) -> None:
        """Watch a word of each process that will change when it dies; what is gone is left until then."""
        more = False
        for task in snapshot.tasks:
            if task.kernel or task.dead:
                continue
            kept = self._marks.get(task.address)
            if kept is None or kept[0].identity != task.identity or kept[0].exit_state != task.exit_state:
                self._marks[task.address] = (task, tuple(self.rules.marks(task)))
                more = True
        if not more and self._words:
            return
        there = {task.address for task in snapshot.tasks}
        if not snapshot.torn:
            self._marks = {at: kept for at, kept in self._marks.items() if at in there}
        marks = list(chain.from_iterable(words for _, words in self._marks.values()))
        self._words = (*self.rules.words, *marks[-MOST_WORDS:])


def _with(snapshot: Snapshot, transient: Mapping[int, bool]) -> Snapshot:
    if not transient:
        return snapshot
    tasks = list(snapshot.tasks)
    for at, value in transient.items():
        tasks[at] = tasks[at]._replace(transient=value)
    return replace(snapshot, tasks=tasks)
