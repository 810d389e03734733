"""Joins the state machine and the difference of looks: happenings in, events out.

One in, many out, deterministic: the same traps over the same memory give the same events.  What
an event carries beyond the task itself is read by the `describe` function that the owner hands in,
at the moment when the event becomes true and only then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from live.core.events import (
    EndReason,
    Event,
    ExitStatus,
    Identity,
    Occasion,
    Process,
    ProcessEnd,
    ProcessExec,
    ProcessStart,
    StartReason,
)
from live.core.lifecycle import TRANSITIONS, Emit, State
from live.core.snapshot import Counters, Happening, Moment, Snapshot, Task, comm_of, difference

_STARTS = {
    Emit.START_RUNNING: StartReason.RUNNING,
    Emit.START_FORK: StartReason.FORK,
    Emit.START_EXEC: StartReason.EXEC,
}
_MAX_GONE = 1024
"""Identities that are remembered to have left the list: a trap may be handled after the look that saw it."""


@dataclass(slots=True)
class Counts:
    """What happened so far, and what must not happen: printed in every summary.

    ``missed``: tasks (processes and threads: the kernel has one counter for both) that were
    created and were never seen.  ``unexpected``: moments that the table does not list.
    ``late``: processes first seen at their death.  ``torn``: looks at a list
    that never held still.  ``unreadable``: traps whose task could not be read.
    """

    starts: int = 0
    execs: int = 0
    ends: int = 0
    missed: int = 0
    unexpected: int = 0
    late: int = 0
    torn: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class _Known:
    task: Task
    process: Process


class Tracker:
    """Every process once: at its start, at each exec, at its end.

    ``describe`` completes a task to a `Process`; ``revisit`` looks once more at a task that left
    the list, and returns it with its exit code if its memory was not reused, else None.
    """

    def __init__(
        self, describe: Callable[[Task], Process], revisit: Callable[[Task], Task | None] = lambda _: None
    ) -> None:
        """Start with no knowledge: the first look announces what is running."""
        self._describe = describe
        self._revisit = revisit
        self._known: dict[Identity, _Known | None] = {}
        self._tasks: dict[Identity, Task] = {}
        self._by_pid: dict[int, Identity] = {}
        self._attached: set[Identity] | None = None
        self._counters: Counters | None = None
        self._tids: frozenset[tuple[int, int]] = frozenset()
        self._trapped: set[tuple[int, int]] = set()
        self._uncounted = self._unseen = 0
        self._unfinished: set[Identity] = set()
        self._gone: dict[Identity, None] = {}
        self._out: deque[Event] = deque()
        self._time_ns = 0
        self.counts = Counts()

    @property
    def counters(self) -> Counters | None:
        """The kernel's counters at the last consistent snapshot."""
        return self._counters

    def live(self) -> list[Process]:
        """The processes that have started and not ended, as announced."""
        return [known.process for known in self._known.values() if known is not None]

    def next_event(self) -> Event | None:
        """The next event, oldest first; None when there is none."""
        return self._out.popleft() if self._out else None

    def created(self, tid: int, start: int) -> None:
        """Take note of a new task, thread or process, that a trap reported."""
        self._trapped.add((tid, start))

    def receive_tasks(self, snapshot: Snapshot) -> None:
        """Take in a look at the whole task list."""
        if self._attached is None:
            self._attached = {task.identity for task in snapshot.tasks}
        late = snapshot.time_ns - self._time_ns if self._counters is not None else 0
        self._account(snapshot)
        occasion = Occasion(
            time_ns=snapshot.time_ns, trigger=snapshot.trigger, late_ns=late, missed=self.counts.missed
        )
        for happening in list(difference(self._tasks, snapshot, self._attached)):
            if happening.moment is not Moment.REAP:
                self._gone.pop(happening.task.identity, None)  # a list that lied: it is there again
            self.receive(happening, occasion)
        for task in snapshot.tasks:
            # Kept current, so that what is reported of a vanished task is its latest state.
            if task.identity in self._tasks and not task.transient:
                self._tasks[task.identity] = task
        if not snapshot.torn:
            # Found inside execve, and gone before it was complete: found, but never shown.
            listed = {task.identity for task in snapshot.tasks}
            self.counts.missed += len(self._unfinished - listed - self._tasks.keys())
            self._unfinished = listed - self._tasks.keys()
        self._time_ns = snapshot.time_ns

    def receive(self, happening: Happening, occasion: Occasion) -> None:
        """Take in one moment of one thread group, from a trap or from the difference of looks."""
        moment, task = happening
        identity = task.identity
        if identity in self._gone:
            return  # a trap from before the look that found it gone
        if moment is Moment.DEATH and identity not in self._known and identity in (self._attached or ()):
            # Inside execve when we attached, and it never got out: it was running, nobody forked it now.
            self.receive(Happening(Moment.PRESENT, task), occasion)
        if identity in self._known:
            known = self._known[identity]
            state = State.LIVE if known is not None else State.DEAD
            if moment is Moment.EXEC and known is not None and known.task.generation == task.generation:
                return  # a look was first
        else:
            known, state = None, State.ABSENT
        transition = TRANSITIONS.get((state, moment))
        if transition is None:
            self.counts.unexpected += 1
            return
        # A look may have found it inside execve; now it is known, and it may be gone at the next snapshot.
        self._unfinished.discard(identity)
        if state is State.ABSENT and moment is Moment.DEATH:
            self.counts.late += 1
            self._found_late(identity)
        process = known.process if known is not None else None
        for emit in transition.emits:
            process = self._emit(emit, task, process, occasion)
        if transition.state is State.ABSENT:
            self._forget(identity)
            return
        if transition.state is State.DEAD:
            self._known[identity] = None
        elif transition.emits and process is not None:
            self._known[identity] = _Known(task, process)
        self._tasks[identity] = task

    def _found_late(self, identity: Identity) -> None:
        """Its birth was lost, and a look that came before the trap of its death may have found it reaped."""
        if identity in self._tids:
            return
        if self._unseen:  # counted as missed by that look; now it is shown
            self._unseen -= 1
            self.counts.missed -= 1
        else:
            self._trapped.add(identity)

    def _forget(self, identity: Identity) -> None:
        self._known.pop(identity, None)
        self._tasks.pop(identity, None)
        if self._by_pid.get(identity.pid) == identity:
            del self._by_pid[identity.pid]
        self._gone[identity] = None
        if len(self._gone) > _MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def _emit(self, emit: Emit, task: Task, process: Process | None, occasion: Occasion) -> Process | None:
        """Queue one event; returns the process that the next event of this transition is about."""
        if emit in _STARTS:
            if emit is not Emit.START_EXEC or process is None or process.generation != task.generation:
                process = self._complete(task)
            self._out.append(ProcessStart(process=process, reason=_STARTS[emit], occasion=occasion))
            self.counts.starts += 1
            return process
        if process is None:
            return None
        if emit is Emit.EXEC:
            new = self._complete(task)
            self._out.append(ProcessExec(old=process, new=new, occasion=occasion))
            self.counts.execs += 1
            return new
        reason, status = EndReason.EXEC, None
        # A process may have renamed itself (prctl PR_SET_NAME); its end tells the last name.
        if emit is Emit.END:
            status = ExitStatus.from_kernel(task.exit_code)
            process = replace(process, comm=comm_of(task))
        elif emit is Emit.END_GONE:
            reason = EndReason.GONE
            last = self._revisit(task)
            if last is not None:
                status = ExitStatus.from_kernel(last.exit_code)
                process = replace(process, comm=comm_of(last))
        if status is not None:
            reason = EndReason.SIGNAL if status.signal is not None else EndReason.EXIT
            process = replace(process, exited=status)
        self._out.append(ProcessEnd(process=process, reason=reason, status=status, occasion=occasion))
        self.counts.ends += 1
        return process

    def _complete(self, task: Task) -> Process:
        process = self._describe(task)
        self._by_pid[process.pid] = process.identity
        parent = self._by_pid.get(process.ppid)
        return replace(process, parent=parent) if parent is not None else process

    def _account(self, snapshot: Snapshot) -> None:
        """How many tasks came and went unseen: those created, less those found on the list or trapped."""
        if snapshot.torn:
            self.counts.torn += 1
            # What it found was there, and is shown: not missed, even if it is gone at the next snapshot.
            inside_execve = {task.identity for task in snapshot.tasks if task.transient and not task.dead}
            self._trapped |= snapshot.tids - (inside_execve - self._tasks.keys())
            return
        if self._counters is not None:
            created = (snapshot.counters.forks - self._counters.forks) % (1 << 64)
            found = len((snapshot.tids | self._trapped) - self._tids)
            # The kernel puts a task on the list a moment before it counts it: what was found too early is
            # counted by the next snapshot.  A hostile guest that turns the counter back makes no nonsense of
            # it.
            if created < 1 << 40:
                unseen = created - found - self._uncounted
                self._unseen = max(unseen, 0)
                self.counts.missed += self._unseen
                self._uncounted = max(-unseen, 0)
        self._counters = snapshot.counters
        self._tids = snapshot.tids
        self._trapped.clear()
