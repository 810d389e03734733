"""Keeps what is known of every asid (`live.core.asids`), and says what is to be trapped next.  No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    before: frozenset[Identity]
    """Who had the asid then."""
    left: int = _MOST_CALLS


class AsidWatch:
    """What is to be trapped, and what a snapshot at a trap shows."""

    def __init__(
        self, machine: Architecture, rules: AsidRules, shown: Shown, mode: AsidMode = AsidMode.ASID
    ) -> None:
        """Nothing is known.  ``shown``: the tracker's knowledge."""
        self._fenced = False
        self._every = Action.OFF
        self._machine, self._rules, self._shown, self._mode = machine, rules, shown, mode
        self.premature = 0
        """Tasks that were taken for complete while they were transient; in `AsidMode.DIFF` only."""
        self._standings: dict[Asid, Standing] = {}
        self._opened: dict[tuple[int, Asid], _Opened] = {}  # by the caller, 0 if unknown, and its asid
        self._changes: dict[Asid, int] = {}
        self._tasks: dict[int, Task] = {}
        self._places: dict[Identity, int] = {}
        self._asids: dict[int, Asid] = {}
        self._owners: dict[Asid, set[int]] = {}
        self._words = _Words(rules)
        self._fresh: list[Task] = []
        self._split = True
        self._request: TrapRequest | None = None

    # --- what is to be trapped ---------------------------------------------------------------------------

    @property
    def request(self) -> TrapRequest:
        """From now on; the same object as long as it does not change."""
        if self._request is None:
            self._request = self._make()
        return self._request

    def fence(self) -> None:
        """From now on the guest may run on where a word has moved, up to its next system call."""
        self._fenced, self._request = True, None

    def trap_every_change(self) -> None:
        """From now on every asid change is held, for whoever looks at more than processes."""
        self._every, self._request = Action.HOLD, None

    def _make(self) -> TrapRequest:
        if self._mode is AsidMode.DIFF:
            return TrapRequest(asid_changes=Action.HOLD, split_asids=self._split)
        rules = self._rules
        if not self._tasks:
            return TrapRequest(words=tuple(rules.words), split_asids=self._split)
        calm = (asid for asid, standing in self._standings.items() if standing in CALM)
        return TrapRequest(
            settled=rules.kernel.union(calm),
            pending=frozenset(asid for _, asid in self._opened),
            asid_changes=self._every,
            unsettled_asids=Action.RECORD,
            unsettled_syscalls=Action.HOLD,
            syscalls=rules.syscalls,
            compat_syscalls=rules.compat_syscalls,
            call_flags=rules.call_flags,
            words=self._words.all,
            moved_fence=rules.waits if self._fenced else None,
            entries=rules.entries if self._fenced else frozenset(),
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
            return Cause.OTHER if self._calm(trap.asid) else Cause.CALL
        if trap.moved:
            return Cause.MOVED_HERE if trap.words else Cause.MOVED
        if self._calm(trap.new_asid):
            return Cause.OTHER
        self._changes[trap.new_asid] = self._changes.get(trap.new_asid, 0) + 1
        return Cause.OFTEN if self._changes[trap.new_asid] > _OFTEN else Cause.CHANGE

    def _calm(self, asid: Asid) -> bool:
        return self._standings.get(asid) in CALM or asid in self._rules.kernel

    def corrected(self, snapshot: Snapshot, trap: AsidChange | Syscall | None) -> Snapshot:
        """The snapshot, its tasks as transient as they are known to be at this trap; None: at no trap."""
        known = self._tasks
        self._fresh = [
            task for task in snapshot.tasks if known.get(task.address) is not task or task.transient
        ]
        self._look_at_roots(self._fresh)
        calling = trap.asid if isinstance(trap, Syscall) else None
        changed: dict[int, Task] = {}
        for task in self._fresh:
            better = self._corrected(task, calling)
            if better is not task:
                changed[task.address] = better
        if not changed:
            return snapshot
        self._fresh = [changed.get(task.address, task) for task in self._fresh]
        return replace(snapshot, tasks=[changed.get(task.address, task) for task in snapshot.tasks])

    def corrected_task(self, task: Task, trap: AsidChange | Syscall) -> Task:
        """The same for one task that was read at a trap."""
        self._look_at_roots((task,))
        return self._corrected(task, trap.asid if isinstance(trap, Syscall) else None)

    def _corrected(self, task: Task, calling: Asid | None) -> Task:
        if task.transient and not task.dead:
            if self._mode is AsidMode.DIFF:
                self.premature += 1
                return task._replace(transient=False)
            if calling is not None and self._asid(task.asid) == calling:
                return task._replace(transient=False)
        elif task.fresh and self._is_unfinished(task):
            return task._replace(transient=True)
        return task

    def _is_unfinished(self, task: Task) -> bool:
        ours = self._mode is AsidMode.ASID and self._shown(task.identity) is None
        return ours and self._rules.unfinished(task)

    def _look_at_roots(self, tasks: Iterable[Task]) -> None:
        if self._split and any(task.asid != self._machine.asid_of(task.asid) for task in tasks):
            # A process has one table of pages for both the kernel and itself.  No root so far had that bit.
            self._split, self._request = False, None
            self._forget_foreign()

    def moved(self, trap: AsidChange) -> tuple[list[int], bool]:
        """(guest-virtual addresses of the tasks of which a word has moved, whether tasks came or went)."""
        marked = {self._words.owner(gpa) for gpa in trap.words}
        alive = [at for at in marked if at is not None and at in self._tasks and not self._tasks[at].dead]
        return sorted(alive), any(self._words.counts(gpa) for gpa in trap.words)

    def identity_at(self, address: int) -> Identity | None:
        """Of the task that is known at a guest-virtual address."""
        task = self._tasks.get(address)
        return task.identity if task is not None else None

    def runs_in(self, task: Task, asid: Asid) -> bool:
        """Whether a task that was read at a call in an asid is the one that makes it."""
        return bool(task.asid) and self._asid(task.asid) == asid

    # --- after a look ------------------------------------------------------------------------------------

    def take(self, trap: AsidChange | Syscall) -> None:
        """Take in a trap at which the list was not read."""
        if isinstance(trap, AsidChange) and trap.moved:
            self._forget_foreign()
        if not isinstance(trap, AsidChange) or self._calm(trap.new_asid):
            return
        if len(self._owners.get(trap.asid, ())) == 1:
            self._see(trap.asid, Seen.LEFT)

    def take_task(self, task: Task, trap: AsidChange | Syscall) -> None:
        """Take in one corrected task that was read at a trap."""
        touched = self._put(task)
        self._answer(trap)
        if isinstance(trap, Syscall):
            self._changes.pop(trap.asid, None)
            touched.append(trap.asid)
        self._see_owners(touched)
        if self._words.note((task,)):
            self._request = None

    def take_list(self, snapshot: Snapshot, trap: AsidChange | Syscall | None) -> None:
        """Take in a corrected snapshot, and the trap at which it was taken."""
        if isinstance(trap, AsidChange) and trap.moved:
            self._forget_foreign()
        touched = {asid for task in self._fresh for asid in self._put(task)}
        if not snapshot.torn and len(self._tasks) != len(snapshot.tasks):
            listed = {task.address for task in snapshot.tasks}
            touched.update(asid for at in self._tasks.keys() - listed for asid in self._drop(at))
        self._changes.clear()
        self._answer(trap)
        self._see_owners(touched)
        if trap is not None and not snapshot.torn:
            subject = trap.new_asid if isinstance(trap, AsidChange) else trap.asid
            self._see_owners((subject,), otherwise=Seen.STRANGE)
        if isinstance(trap, Syscall) and self._rules.shares(trap):
            self._see(trap.asid, Seen.SHARES)
            self._opened[self._rules.caller(trap), trap.asid] = _Opened(self._identities(trap.asid))
            self._request = None
        if self._mode is AsidMode.ASID and self._words.note(self._fresh):
            self._request = None

    def _see_owners(self, asids: Iterable[Asid], otherwise: Seen = Seen.UNOWNED) -> None:
        for asid in asids:
            owners = [self._tasks[at] for at in self._owners.get(asid, ())]
            if owners:
                hidden = any(task.transient and not task.dead for task in owners)
                self._see(asid, Seen.TRANSIENT if hidden else Seen.COMPLETE)
            else:
                self._see(asid, otherwise)

    def _see(self, asid: Asid, seen: Seen) -> None:
        before = self._standings.get(asid, Standing.NEW)
        after = STANDINGS.get((before, seen), before)
        if (before in CALM) != (after in CALM):
            self._request = None
        if after is Standing.NEW:
            self._standings.pop(asid, None)
        else:
            self._standings[asid] = after

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
        elsewhere = self._places.get(task.identity)
        if elsewhere is not None:  # an exec by another thread, which is the leader now
            touched += self._drop(elsewhere)
        root: int = task.asid
        if not root and not task.dead and not task.kernel:
            # A leader that has left its threads behind: they go on in the asid that it had.
            if before is not None and before.identity == task.identity:
                root = before.asid
            elif (process := self._shown(task.identity)) is not None:
                root = process.asid or 0
            task = task._replace(asid=root)
        self._tasks[task.address] = task
        self._places[task.identity] = task.address
        if root:
            asid = self._asid(root)
            self._asids[task.address] = asid
            self._owners.setdefault(asid, set()).add(task.address)
            touched.append(asid)
        return touched

    def _drop(self, address: int) -> list[Asid]:
        task = self._tasks.pop(address, None)
        if task is not None:
            del self._places[task.identity]
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
        for (who, asid), opened in list(self._opened.items()):
            if isinstance(trap, Syscall) and trap.asid == asid:
                opened.left -= 1
            owners = [self._tasks[at] for at in self._owners.get(asid, ())]
            born = any(
                task.identity not in opened.before and (not who or task.parent == who) for task in owners
            )
            if born or not owners or not opened.left or (who and who == caller):
                del self._opened[who, asid]
                self._request = None
                if all(other != asid for _, other in self._opened):
                    self._see(asid, Seen.ANSWERED if owners else Seen.UNOWNED)


class _Words:
    """The words that are compared at each asid change.

    That of a task which is gone stays among them: the memory of a task is used for the next ones.
    """

    def __init__(self, rules: AsidRules) -> None:
        self._rules = rules
        self._counters = {word.gpa for word in rules.words}
        self._noted: dict[int, tuple[Identity, int]] = {}
        self._marks: dict[Word, int] = {}
        self._owners: dict[int, int] = {}
        self.all: tuple[Word, ...] = tuple(rules.words)

    def owner(self, gpa: int) -> int | None:
        """The address of the task that a word is of."""
        return self._owners.get(gpa)

    def counts(self, gpa: int) -> bool:
        """Whether a word counts tasks."""
        return gpa in self._counters

    def note(self, tasks: Iterable[Task]) -> bool:
        """Compare a word of each process that will change when it dies; whether one of them is new."""
        new = [word for task in tasks for word in self._of(task)]
        if not new:
            return False
        self._marks.update(dict.fromkeys(new, 0))
        while len(self._marks) > MOST_WORDS:
            del self._marks[next(iter(self._marks))]
        self.all = (*self._rules.words, *self._marks)
        return True

    def _of(self, task: Task) -> list[Word]:
        """Those that were not compared before."""
        known = (task.identity, task.exit_state)
        if task.kernel or task.dead or self._noted.get(task.address) == known:
            return []
        if len(self._noted) > MOST_WORDS:
            self._noted.clear()
        self._noted[task.address] = known
        words = self._rules.marks(task)
        self._owners.update({word.gpa: task.address for word in words})
        return [word for word in words if word not in self._marks]
