"""The members that are read of every task on the list."""

from __future__ import annotations

from typing import NamedTuple

from live.linux.layout import field

TASK = (  # in the order of `TaskStruct`
    field("tasks.next"),
    field("pid"),
    field("tgid"),
    field("flags"),
    field("exit_state"),
    field("exit_code"),
    field("real_parent"),
    # start_boottime since 5.5 (kernel commit cf25e24db61c), real_start_time before.
    field("start_boottime", "real_start_time"),
    field("self_exec_id"),
    field("mm"),
    field("real_cred"),
    field("signal"),
    field("group_leader"),
    field("comm"),
    field("in_execve", default=0),
)
SIGNAL = (  # in the order of `SignalStruct`; signal->live is an atomic_t
    field("live.counter", "live"),
    field("flags"),
    field("group_exit_code"),
    field("nr_threads"),
    field("thread_head.next"),
)
MM = (field("pgd"),)
CRED = (field("uid.val", "uid"),)


class TaskStruct(NamedTuple):
    """The members that are read of every `struct task_struct`; pointers are guest-virtual.

    ``next`` is `tasks.next`, ``start_boottime`` in ns, ``comm`` 16 raw bytes.
    """

    next: int
    pid: int
    tgid: int
    flags: int
    exit_state: int
    exit_code: int
    real_parent: int
    start_boottime: int
    self_exec_id: int
    mm: int
    real_cred: int
    signal: int
    group_leader: int
    comm: bytes
    in_execve: int


class SignalStruct(NamedTuple):
    """The members that are read of every `struct signal_struct`; ``first_thread`` is `thread_head.next`."""

    live: int
    flags: int
    group_exit_code: int
    nr_threads: int
    first_thread: int
