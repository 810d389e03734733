"""From moments to events: classify the state of an identity, look up the row, apply it.

The rows are `live.core.lifecycle.TRANSITIONS`; no case is treated apart from them.  What was missed
is counted by `live.core.accounting`.

Deterministic: the same snapshots and traps over the same memory give the same events.  What an
event carries beyond the task itself is read by the `describe` function that the owner hands in,
when the event becomes true and only then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from live.core.accounting import Accounting
from live.core.clock import FRESH_NS, BootClock
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
from live.core.snapshot import (
    Counters,
    Happening,
    Moment,
    Snapshot,
    Task,
    changes,
    comm_of,
    difference,
    without_repeats,
)

_STARTS = {
    Emit.START_RUNNING: StartReason.RUNNING,
    Emit.START_FORK: StartReason.FORK,
    Emit.START_EXEC: StartReason.EXEC,
}
_CAUGHT = frozenset({Moment.FORK, Moment.EXEC})
REWIND = "rewind"
"""Trigger of a snapshot that is taken because the guest went back to an earlier moment of its boot."""
_MAX_GONE = 1024
"""Identities that are remembered to be GONE; the oldest are forgotten."""


class Describe(Protocol):
    """Completes a task to a `Process` of the same identity and generation."""

    def __call__(self, task: Task, *, standing: bool) -> Process:
        """``standing``: what the task holds does not change while it is read."""


@dataclass(slots=True)
class Counts:
    """What happened so far, and what must not happen: printed in every summary.

    ``starts``, ``execs``, ``ends``: events.  ``missed``: tasks (processes and threads: the kernel
    has one counter for both) that were created and never shown.  ``unexpected``: moments in a state
    for which the table has no row.  ``late``: processes first seen at their death.  ``torn``:
    snapshots of a list that never held still.  ``unreadable``: traps whose task could not be read.
    ``premature``: tasks that were taken for complete inside execve (`live.core.asids`).
    """

    starts: int = 0
    execs: int = 0
    ends: int = 0
    missed: int = 0
    unexpected: int = 0
    late: int = 0
    torn: int = 0
    unreadable: int = 0
    premature: int = 0


@dataclass(slots=True)
class _Known:
    """A thread group that is LIVE or DEAD.

    ``task``: its leader as seen last.  ``process``: the image that was announced last; None if DEAD.
    """

    task: Task
    process: Process | None


class Tracker:
    """Every process once: at its start, at each exec, at its end.

    ``describe`` completes a task to a `Process` of the same identity and generation.  ``revisit``
    reads a task that has left the list once more: it returns it with its exit code if its memory
    was not reused, else None.  ``uptime`` reads the guest's boot clock, ns; None if it is not known.  What
    they raise passes through `receive` and `receive_tasks`, which raise nothing themselves.
    """

    def __init__(
        self,
        describe: Describe,
        revisit: Callable[[Task], Task | None] = lambda _: None,
        uptime: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Start with no knowledge: the first snapshot announces what is running."""
        self.counts = Counts()
        self._uptime, self._clock = uptime, BootClock()
        self._events = _Events(describe, revisit, self.counts)
        self._accounting = Accounting()
        self._attached: set[Identity] | None = None
        self._known: dict[Identity, _Known] = {}
        self._gone: dict[Identity, None] = {}
        self._time_ns = 0

    @property
    def counters(self) -> Counters | None:
        """The kernel's counters at the last consistent snapshot; None before the first."""
        return self._accounting.counters

    def live(self) -> list[Process]:
        """The processes that have started and not ended, as announced."""
        return [known.process for known in self._known.values() if known.process is not None]

    def shown(self, identity: Identity) -> Process | None:
        """The process that was announced last under this identity; None if it has not, or has ended."""
        known = self._known.get(identity)
        return known.process if known is not None else None

    def next_event(self) -> Event | None:
        """The next event, oldest first; None when there is none."""
        return self._events.queue.popleft() if self._events.queue else None

    def created(self, tid: int, start: int) -> None:
        """A trap reported a new task, process or thread.  ``start``: its `start_boottime` in ns."""
        self._accounting.created(tid, start)

    def receive_tasks(self, snapshot: Snapshot, caught_ns: int | None = None) -> None:
        """Take in a snapshot of the task list.  The first one is that of attaching; see also `REWIND`.

        ``caught_ns``: it was taken so many ns after a trap at which new processes and images are found as
        soon as they are complete; None: they may be as old as the snapshot before.
        """
        if self._attached is None:
            self._attached = {task.identity for task in snapshot.tasks}
        elif snapshot.trigger == REWIND:
            self._rewind(snapshot)
        late_ns = snapshot.time_ns - self._time_ns if self.counters is not None else 0
        self.counts.torn += snapshot.torn
        self._accounting.count(snapshot, self._known.keys())
        self.counts.missed = self._accounting.missed
        tasks = {identity: known.task for identity, known in self._known.items()}
        occasion: Occasion | None = None
        # Not as a list: what one moment changes in `_gone` decides whether a later one is a RETURN.
        for happening in difference(tasks, snapshot, self._attached, self._gone):
            if occasion is None:
                missed = self.counts.missed
                occasion = self._clocked(
                    Occasion(
                        time_ns=snapshot.time_ns, trigger=snapshot.trigger, late_ns=late_ns, missed=missed
                    ),
                    snapshot.time_ns,
                    late_ns,
                )
                caught = occasion if caught_ns is None else replace(occasion, late_ns=caught_ns)
            if caught_ns is not None and happening.moment in _CAUGHT:
                self._receive(happening, caught, False)
            else:
                self._receive(happening, _not_older(occasion, happening.task), False)
        for task in snapshot.tasks:
            # Kept current, so that what is reported of a vanished task is its latest state.
            if task.identity in self._known and not task.transient:
                self._known[task.identity].task = task
        self._accounting.settle(snapshot, self._known.keys())
        self.counts.missed = self._accounting.missed
        self._time_ns = snapshot.time_ns

    def _rewind(self, snapshot: Snapshot) -> None:
        """The guest went back to an earlier moment: who is listed and not LIVE is as when we attached."""
        self._attached = {task.identity for task in snapshot.tasks}
        self._known = {
            identity: known for identity, known in self._known.items() if known.process is not None
        }
        self._gone.clear()

    def receive_task(self, task: Task, occasion: Occasion, *, standing: bool = False) -> None:
        """Take in one task as it is at a trap, which is about it.  ``standing``: as for `receive`."""
        known = self._known.get(task.identity)
        if known is None and not task.transient:
            self.created(*task.identity)
        attached = self._attached or ()
        for happening in changes(known.task if known else None, task, attached, self._gone):
            self.receive(happening, occasion, standing=standing)
        if task.identity in self._known and not task.transient:
            self._known[task.identity].task = task

    def receive(self, happening: Happening, occasion: Occasion, *, standing: bool = False) -> None:
        """Take in one moment of one thread group, from a trap or from the difference of snapshots.

        ``standing``: a vCPU is held, so nothing of the task changes now; passed on to ``describe``.
        """
        if happening.moment is Moment.FORK:
            self._clock.seen(occasion.time_ns - occasion.late_ns, happening.task.identity.start)
        taken_ns = occasion.time_ns - occasion.late_ns
        self._receive(happening, self._clocked(occasion, taken_ns, occasion.late_ns), standing)

    def _clocked(self, occasion: Occasion, moment_ns: int, since_ns: int) -> Occasion:
        """The occasion, with the guest's clock at ``moment_ns``; the guest has run within ``since_ns``."""
        boot_ns = self._uptime()
        if boot_ns is None:
            return occasion
        self._clock.seen(occasion.time_ns, boot_ns, since_ns + FRESH_NS)
        return replace(occasion, boottime=self._clock.at(moment_ns))

    def _receive(self, happening: Happening, occasion: Occasion, standing: bool) -> None:
        identity = happening.task.identity
        known = self._known.get(identity)
        process = known.process if known is not None else None
        if known is not None and process is not None:
            happening = without_repeats(happening, known.task, process.generation)
        moment, task = happening
        transition = TRANSITIONS.get((self._state(identity), moment))
        if transition is None:
            self.counts.unexpected += 1
            return
        if transition.late:
            self.counts.late += 1
            self._accounting.shown_late(identity)
            self.counts.missed = self._accounting.missed
        for emit in transition.emits:
            process = self._events.emit(emit, task, process, occasion, standing)
        self._enter(transition.state, task, process)

    def _state(self, identity: Identity) -> State:
        if identity in self._gone:
            return State.GONE
        known = self._known.get(identity)
        if known is not None:
            return State.LIVE if known.process is not None else State.DEAD
        return State.ATTACHED if identity in (self._attached or ()) else State.ABSENT

    def _enter(self, state: State, task: Task, process: Process | None) -> None:
        """Store the state so that `_state` finds it: in `_known`, in `_gone`, or in neither."""
        identity = task.identity
        if state is State.LIVE or state is State.DEAD:
            self._gone.pop(identity, None)
            self._known[identity] = _Known(task, process if state is State.LIVE else None)
            self._accounting.shown(identity)
            return
        self._known.pop(identity, None)
        self._events.forget(identity)
        if state is State.GONE:
            self._gone[identity] = None
            if len(self._gone) > _MAX_GONE:
                del self._gone[next(iter(self._gone))]
        else:
            self._gone.pop(identity, None)


def _not_older(occasion: Occasion, task: Task) -> Occasion:
    """The occasion; what a snapshot found of a task is no older than the task."""
    if occasion.boottime is None:
        return occasion
    age = max(occasion.boottime - task.identity.start, 0)
    return replace(occasion, late_ns=age) if age < occasion.late_ns else occasion


class _Events:
    """Makes the events that a transition names, queues and counts them."""

    def __init__(self, describe: Describe, revisit: Callable[[Task], Task | None], counts: Counts) -> None:
        """Arguments as for `Tracker`; ``counts``: where events are counted."""
        self.queue: deque[Event] = deque()
        self._describe = describe
        self._revisit = revisit
        self._counts = counts
        self._by_pid: dict[int, Identity] = {}

    def emit(
        self, emit: Emit, task: Task, process: Process | None, occasion: Occasion, standing: bool
    ) -> Process | None:
        """Queue one event; returns the process that the next event of this transition is about.

        ``process``: the one that the event before it was about, or else the one announced last.
        """
        if emit in _STARTS:
            if emit is not Emit.START_EXEC or process is None or process.generation != task.generation:
                process = self._complete(task, standing)
            self.queue.append(ProcessStart(process=process, reason=_STARTS[emit], occasion=occasion))
            self._counts.starts += 1
            return process
        if process is None:
            return None
        if emit is Emit.EXEC:
            new = self._complete(task, standing)
            self.queue.append(ProcessExec(old=process, new=new, occasion=occasion))
            self._counts.execs += 1
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
            reason = status.reason
            process = replace(process, exited=status)
        self.queue.append(ProcessEnd(process=process, reason=reason, status=status, occasion=occasion))
        self._counts.ends += 1
        return process

    def forget(self, identity: Identity) -> None:
        """It is no longer the parent that its pid stands for."""
        if self._by_pid.get(identity.pid) == identity:
            del self._by_pid[identity.pid]

    def _complete(self, task: Task, standing: bool) -> Process:
        process = self._describe(task, standing=standing)
        self._by_pid[process.pid] = process.identity
        parent = self._by_pid.get(process.ppid)
        return replace(process, parent=parent) if parent is not None else process
