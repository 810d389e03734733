"""Keeps what is known of every asid (`live.core.asids`), and says what is to be trapped next.  No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from live.core.asids import CALM, LOOKS, STANDINGS, AsidMode, Cause, Look, Seen, Standing
from live.core.events import Identity, Process
from live.core.machine import Architecture
from live.core.memory import Asid
from live.core.snapshot import Snapshot, Task
from live.core.system import AsidRules
from live.core.traps import Action, AsidChange, Syscall, TrapRequest, Word

MOST_WORDS = 4000
"""Words that are compared at each asid change: those of the newest tasks."""
_OFTEN = 3
"""Changes to an unsettled asid without a system call in it, after which the task list is looked at."""
_MOST_CALLS = 64
"""System calls in an asid after which a child is not waited for any more, if it cannot be told who makes
them."""

Shown = Callable[[Identity], Process | None]
"""The process that was announced last under an identity."""


@dataclass(slots=True)
class _Opened:
    """A call that may make a process in the caller's asid."""

    asid: Asid
    before: frozenset[Identity]
    """Who had the asid then."""
    left: int = _MOST_CALLS


class AsidWatch:
    """What is to be trapped, and what a snapshot at a trap shows."""

    def __init__(
        self, machine: Architecture, rules: AsidRules, shown: Shown, mode: AsidMode = AsidMode.ASID
    ) -> None:
        """Nothing is known.  ``shown``: the tracker's knowledge."""
        self._machine, self._rules, self._shown, self._mode = machine, rules, shown, mode
        self.premature = 0
        """Tasks that were taken for complete while they were transient; in `AsidMode.DIFF` only."""
        self._standings: dict[Asid, Standing] = {}
        self._opened: dict[int, _Opened] = {}
        self._changes: dict[Asid, int] = {}
        self._tasks: dict[int, Task] = {}
        self._asids: dict[int, Asid] = {}
        self._owners: dict[Asid, set[int]] = {}
        self._words = _Words(rules)
        self._split = True
        self._request: TrapRequest | None = None

    # --- what is to be trapped ---------------------------------------------------------------------------

    @property
    def request(self) -> TrapRequest:
        """From now on; the same object as long as it does not change."""
        if self._request is None:
            self._request = self._make()
        return self._request

    def _make(self) -> TrapRequest:
        if self._mode is AsidMode.DIFF:
            return TrapRequest(asid_changes=Action.HOLD, split_asids=self._split)
        rules = self._rules
        if not self._tasks:
            return TrapRequest(words=tuple(rules.words), split_asids=self._split)
        calm = (asid for asid, standing in self._standings.items() if standing in CALM)
        return TrapRequest(
            settled=rules.kernel.union(calm),
            unsettled_asids=Action.HOLD,
            unsettled_syscalls=Action.HOLD,
            syscalls=rules.syscalls,
            compat_syscalls=rules.compat_syscalls,
            call_flags=rules.call_flags,
            words=self._words.all,
            split_asids=self._split,
        )

    # --- before a look -----------------------------------------------------------------------------------

    def look(self, trap: AsidChange | Syscall) -> Look:
        """How much is to be read at this trap."""
        return Look.LIST if self._mode is AsidMode.DIFF else LOOKS[self._cause(trap)]

    def _cause(self, trap: AsidChange | Syscall) -> Cause:
        if isinstance(trap, Syscall):
            if self._rules.shares(trap):
                return Cause.OPENING
            return Cause.OTHER if self._standings.get(trap.asid) in CALM else Cause.CALL
        if trap.moved:
            return Cause.MOVED
        self._changes[trap.new_asid] = self._changes.get(trap.new_asid, 0) + 1
        return Cause.OFTEN if self._changes[trap.new_asid] > _OFTEN else Cause.CHANGE

    def corrected(self, snapshot: Snapshot, trap: AsidChange | Syscall | None) -> Snapshot:
        """The snapshot, its tasks as transient as they are known to be at this trap; None: at no trap."""
        if self._split and any(task.asid != self._machine.asid_of(task.asid) for task in self._new(snapshot)):
            # A process has one table of pages for both the kernel and itself.
            self._split = False
            self._forget()
        calling = trap.asid if isinstance(trap, Syscall) else None
        transient: dict[int, bool] = {}
        for at, task in enumerate(snapshot.tasks):
            if task.transient and not task.dead:
                if self._mode is AsidMode.DIFF or self._asid(task.asid) == calling:
                    transient[at] = False
            elif task.fresh and self._tasks.get(task.address) is not task and self._is_unfinished(task):
                transient[at] = True
        if self._mode is AsidMode.DIFF:
            self.premature += len(transient)
        return _with(snapshot, transient)

    def _new(self, snapshot: Snapshot) -> Iterable[Task]:
        return (task for task in snapshot.tasks if self._tasks.get(task.address) is not task)

    def _is_unfinished(self, task: Task) -> bool:
        ours = self._mode is AsidMode.ASID and self._shown(task.identity) is None
        return ours and self._rules.unfinished(task)

    def runs_in(self, task: Task, asid: Asid) -> bool:
        """Whether a task that was read at a call in an asid is the one that makes it."""
        return bool(task.asid) and self._asid(task.asid) == asid

    # --- after a look ------------------------------------------------------------------------------------

    def take(self, trap: AsidChange | Syscall) -> None:
        """Take in a trap at which nothing was read."""
        if isinstance(trap, AsidChange) and len(self._owners.get(trap.asid, ())) == 1:
            self._see(trap.asid, Seen.LEFT)

    def take_caller(self, task: Task, trap: Syscall) -> None:
        """Take in the leader of the task that makes a call."""
        self._put(task)
        self._changes.pop(trap.asid, None)
        self._answer(trap)
        self._see(trap.asid, Seen.COMPLETE)
        if self._words.add(task):
            self._request = None

    def take_list(self, snapshot: Snapshot, trap: AsidChange | Syscall | None) -> None:
        """Take in a corrected snapshot, and the trap at which it was taken."""
        if isinstance(trap, AsidChange) and trap.moved:
            self._forget_foreign()
        touched = {asid for task in list(self._new(snapshot)) for asid in self._put(task)}
        if not snapshot.torn and len(self._tasks) != len(snapshot.tasks):
            listed = {task.address for task in snapshot.tasks}
            touched.update(asid for at in self._tasks.keys() - listed for asid in self._drop(at))
        self._changes.clear()
        self._answer(trap)
        subject = trap.new_asid if isinstance(trap, AsidChange) else trap.asid if trap else None
        if subject is not None:
            touched.add(subject)
        for asid in touched:
            owners = [self._tasks[at] for at in self._owners.get(asid, ())]
            if owners:
                hidden = any(task.transient and not task.dead for task in owners)
                self._see(asid, Seen.TRANSIENT if hidden else Seen.COMPLETE)
            elif not snapshot.torn:
                self._see(asid, Seen.UNOWNED)
        if isinstance(trap, Syscall) and self._rules.shares(trap):
            self._see(trap.asid, Seen.SHARES)
            self._opened[self._rules.caller(trap)] = _Opened(trap.asid, self._identities(trap.asid))
        if self._mode is AsidMode.ASID and self._words.keep(snapshot):
            self._request = None

    def _see(self, asid: Asid, seen: Seen) -> None:
        before = self._standings.get(asid, Standing.NEW)
        after = STANDINGS.get((before, seen), before)
        if (before in CALM) != (after in CALM):
            self._request = None
        if after is Standing.NEW:
            self._standings.pop(asid, None)
        else:
            self._standings[asid] = after

    def _forget(self) -> None:
        self._request = None
        for known in (self._standings, self._opened, self._tasks, self._asids, self._owners):
            known.clear()

    def _forget_foreign(self) -> None:
        """One of them may be a process's by now."""
        for asid in [asid for asid, one in self._standings.items() if one is Standing.FOREIGN]:
            del self._standings[asid]
            self._request = None

    # --- whose an asid is --------------------------------------------------------------------------------

    def _asid(self, root: int) -> Asid:
        return self._machine.asid_of(root, split=self._split)

    def _put(self, task: Task) -> list[Asid]:
        """Note whose asid it is; the asids of which something has changed."""
        before = self._tasks.get(task.address)
        touched = self._drop(task.address)
        root: int = task.asid
        if not root and not task.dead and not task.kernel:
            # A leader that has left its threads behind: they go on in the asid that it had.
            if before is not None and before.identity == task.identity:
                root = before.asid
            elif (process := self._shown(task.identity)) is not None:
                root = process.asid or 0
            task = task._replace(asid=root)
        self._tasks[task.address] = task
        if root:
            asid = self._asid(root)
            self._asids[task.address] = asid
            self._owners.setdefault(asid, set()).add(task.address)
            touched.append(asid)
        return touched

    def _drop(self, address: int) -> list[Asid]:
        self._tasks.pop(address, None)
        asid = self._asids.pop(address, None)
        if asid is None:
            return []
        self._owners[asid].discard(address)
        if not self._owners[asid]:
            del self._owners[asid]
        return [asid]

    def _identities(self, asid: Asid) -> frozenset[Identity]:
        return frozenset(self._tasks[at].identity for at in self._owners.get(asid, ()))

    def _answer(self, trap: AsidChange | Syscall | None) -> None:
        """Whether children of calls that share an asid need not be waited for any more."""
        if not self._opened:
            return
        caller = self._rules.caller(trap) if isinstance(trap, Syscall) else 0
        for who, opened in list(self._opened.items()):
            if isinstance(trap, Syscall) and trap.asid == opened.asid:
                opened.left -= 1
            owners = [self._tasks[at] for at in self._owners.get(opened.asid, ())]
            born = any(
                task.identity not in opened.before and (not who or task.parent == who) for task in owners
            )
            if born or not owners or not opened.left or (who and who == caller):
                del self._opened[who]
                if all(other.asid != opened.asid for other in self._opened.values()):
                    self._see(opened.asid, Seen.ANSWERED)


class _Words:
    """The words that are compared at each asid change."""

    def __init__(self, rules: AsidRules) -> None:
        self._rules = rules
        self._marks: dict[int, tuple[Identity, int, tuple[Word, ...]]] = {}
        self.all: tuple[Word, ...] = tuple(rules.words)

    def add(self, task: Task) -> bool:
        """Watch a word of a process that will change when it dies; whether that is a new one."""
        if not self._note(task):
            return False
        self._compose()
        return True

    def keep(self, snapshot: Snapshot) -> bool:
        """The same for all.  What is gone is left until there is something new: a word too many is none."""
        if not any([self._note(task) for task in snapshot.tasks]):
            return False
        if not snapshot.torn:
            there = {task.address for task in snapshot.tasks}
            self._marks = {at: mark for at, mark in self._marks.items() if at in there}
        self._compose()
        return True

    def _note(self, task: Task) -> bool:
        if task.kernel or task.dead:
            return False
        kept = self._marks.get(task.address)
        if kept is not None and kept[0] == task.identity and kept[1] == task.exit_state:
            return False
        self._marks[task.address] = (task.identity, task.exit_state, tuple(self._rules.marks(task)))
        return True

    def _compose(self) -> None:
        marks = [word for _, _, words in self._marks.values() for word in words]
        self.all = (*self._rules.words, *marks[-MOST_WORDS:])


def _with(snapshot: Snapshot, transient: Mapping[int, bool]) -> Snapshot:
    if not transient:
        return snapshot
    tasks = list(snapshot.tasks)
    for at, value in transient.items():
        tasks[at] = tasks[at]._replace(transient=value)
    return replace(snapshot, tasks=tasks)
