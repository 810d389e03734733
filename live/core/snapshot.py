"""A snapshot of the guest's task list, and the OS-agnostic difference of two snapshots.

The difference takes time linear in the number of processes.  It yields *moments*: what must have
happened in between.  They go through the same state machine as the moments that traps report
(`live.core.lifecycle`), so polling and trapping cannot disagree on what an event is.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from live.core.events import Identity


class Task(NamedTuple):
    """The leader of one thread group, as plain values.

    A NamedTuple and not a dataclass: a snapshot makes a hundred of them within the time of one trap,
    and a frozen dataclass costs eight times as much to create.

    ``address``: guest-virtual address of the `task_struct`; ``parent``: that of `real_parent`.
    ``identity``: (tgid, start_boottime ns).  ``generation``: `self_exec_id`.  ``comm``: raw bytes up
    to the first NUL.
    ``flags``: PF_*.  ``exit_code``: the group's, valid once ``dead``.  ``asid``: gpa of the page
    table, 0 without `mm`.  ``threads``: live threads by the kernel's count (`signal->live`).
    ``fresh``: forked and not exec'ed yet (PF_FORKNOEXEC).  ``dead``: no thread is left.
    ``transient``: inside execve right now; nothing but the identity can be relied on.
    """

    identity: Identity
    address: int
    ppid: int
    parent: int
    comm: bytes
    flags: int
    generation: int
    mm: int
    asid: int
    uid: int
    threads: int
    exit_state: int
    exit_code: int
    kernel: bool
    fresh: bool
    dead: bool
    transient: bool


def comm_of(task: Task) -> str:
    """The name of a task as text; undecodable bytes as surrogates."""
    return task.comm.decode("utf-8", "surrogateescape")


class Counters(NamedTuple):
    """The kernel's own counters: if none moved, no task was created or reaped since.

    ``forks``: `total_forks`, tasks ever created (threads too), wraps at 2**64.  ``threads``:
    `nr_threads`, tasks that are on the list.  ``cursor``: the pid allocator's next pid.
    """

    forks: int
    threads: int
    cursor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All thread groups at one moment.

    ``time_ns``: UTC ns, observer's clock.  ``torn``: the guest changed the list while it was read
    (every retry too); entries are sound, completeness is not.  ``tids`` are all tasks on the list,
    threads included, as (tid, start_boottime).
    """

    time_ns: int
    trigger: str
    counters: Counters
    tasks: Sequence[Task]
    tids: frozenset[tuple[int, int]]
    torn: bool = False


class Moment(str, enum.Enum):
    """What can happen to a thread group.

    Traps report FORK, EXEC and DEATH.  The difference of two snapshots implies these, and PRESENT,
    CORPSE, RETURN and REAP.  `without_repeats` makes REPEAT of an EXEC.
    """

    PRESENT = "present"
    """It was on the task list when we attached, and lives."""
    CORPSE = "corpse"
    """It was on the task list when we attached, and is dead: a zombie."""
    FORK = "fork"
    """It is a new thread group (fork, vfork, clone or clone3), and has the image of its parent."""
    EXEC = "exec"
    """A successful execve or execveat has replaced its image."""
    REPEAT = "repeat"
    """An exec to the image that is known already: a snapshot showed it before its trap was handled."""
    DEATH = "death"
    """Its last thread has died."""
    REAP = "reap"
    """It is no longer on the task list."""
    RETURN = "return"
    """It is on the task list again, after a snapshot without it: one of the two lists lied."""


class Happening(NamedTuple):
    """A moment in the life of one thread group.

    ``task``: its leader as it was at that moment; for REAP and REPEAT as it was seen last.
    """

    moment: Moment
    task: Task


def difference(
    known: Mapping[Identity, Task],
    snapshot: Snapshot,
    attached: Container[Identity] = (),
    gone: Container[Identity] = (),
) -> Iterator[Happening]:
    """What must have happened since the snapshot before, in an order that the kernel allows.

    ``known``: the tasks that are known, as seen last, by identity; it must not change meanwhile.
    ``attached``: the identities that were on the list when we attached.  ``gone``: those that have
    left it; whoever handles a REAP may change it meanwhile.

    Disappearances come first, since their pids may have been reused.  The rest follows in the order
    of the list, which has parents before children.  A task inside execve makes no moment: a later
    snapshot has it complete, under the same identity.  A torn snapshot proves no absence: it makes
    no REAP.
    """
    if not snapshot.torn:
        seen = {task.identity for task in snapshot.tasks}
        for identity, old in known.items():
            if identity not in seen:
                yield Happening(Moment.REAP, old)
    for task in snapshot.tasks:
        before = known.get(task.identity)
        if before is not task:
            yield from changes(before, task, attached, gone)


def changes(
    before: Task | None, task: Task, attached: Container[Identity] = (), gone: Container[Identity] = ()
) -> Iterator[Happening]:
    """What must have happened to one task since it was ``before``; None: it was not known."""
    if task.transient and not task.dead:
        return
    if before is None:
        if task.identity in attached:
            yield Happening(Moment.CORPSE if task.dead else Moment.PRESENT, task)
            return
        if task.identity in gone:
            yield Happening(Moment.RETURN, task)
        yield Happening(Moment.FORK if task.fresh else Moment.EXEC, task)
    elif task.generation != before.generation:
        yield Happening(Moment.EXEC, task)
    if task.dead and (before is None or not before.dead):
        yield Happening(Moment.DEATH, task)


def without_repeats(happening: Happening, last: Task, generation: int) -> Happening:
    """The happening; or REPEAT, if it is an EXEC to the image that was shown last.

    ``last``: the task as it was seen last; a REPEAT keeps it, because the snapshot that was first is
    the newer of the two.  ``generation``: `self_exec_id` of the image that was shown last.
    """
    if happening.moment is Moment.EXEC and happening.task.generation == generation:
        return Happening(Moment.REPEAT, last)
    return happening
