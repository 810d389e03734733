"""One look at the guest's task list, and the OS-agnostic difference of two looks.

The difference is linear in the number of processes.  It yields *moments* (what must have happened
in between), which the same state machine turns into events that the traps drive
(`live.core.lifecycle`); so polling and trapping cannot disagree on what an event is.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from live.core.events import Identity


class Task(NamedTuple):
    """The leader of one thread group, as plain values.

    A NamedTuple and not a dataclass: a look makes a hundred of them within the time of one trap,
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
    """What can happen to a thread group.  Traps report these exactly, two looks imply them."""

    PRESENT = "present"
    """It lived already when we attached."""
    CORPSE = "corpse"
    """It was dead already when we attached: a zombie."""
    FORK = "fork"
    EXEC = "exec"
    DEATH = "death"
    """Its last thread has died."""
    REAP = "reap"
    """It is no longer on the task list."""


class Happening(NamedTuple):
    """A moment in the life of one thread group; ``task`` as seen then (or last, for REAP)."""

    moment: Moment
    task: Task


def difference(
    known: Mapping[Identity, Task], snapshot: Snapshot, attached: Container[Identity] = ()
) -> Iterator[Happening]:
    """What must have happened between two looks, in an order that the kernel allows.

    ``known`` are the tasks of the look before, by identity; ``attached`` the identities that were
    there when we attached.  Disappearances come first (their pids may have been reused since),
    then what is new, parents before children as the list has them.  Tasks inside execve are left
    as they were: they are complete at a later snapshot, under the same identity.
    """
    if not snapshot.torn:
        # A torn list may lack a task that lives: only a consistent one proves an absence.
        seen = {task.identity for task in snapshot.tasks}
        for identity, old in known.items():
            if identity not in seen:
                yield Happening(Moment.REAP, old)
    for task in snapshot.tasks:
        if task.transient and not task.dead:
            continue
        before = known.get(task.identity)
        if before is None:
            if task.identity in attached:
                yield Happening(Moment.CORPSE if task.dead else Moment.PRESENT, task)
                continue
            yield Happening(Moment.FORK if task.fresh else Moment.EXEC, task)
        elif task.generation != before.generation:
            yield Happening(Moment.EXEC, task)
        if task.dead and (before is None or not before.dead):
            yield Happening(Moment.DEATH, task)
