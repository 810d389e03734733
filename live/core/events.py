"""What goes out: a process, and the three things that can happen to it.

All are frozen values.  Fields that could not be read from the guest are None, never "" or 0.
Text that came from the guest is kept as it was (bytes decoded with ``surrogateescape``); whoever
prints it escapes it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from live.core.memory import Asid, GuestVirtual


class Identity(NamedTuple):
    """What never repeats in one boot: pid, task_struct address and asid are all reused, this is not.

    ``pid`` is the tgid in the initial pid namespace, ``start`` the leader's `start_boottime` in ns
    (exec from another thread keeps both: de_thread() copies the leader's times).
    """

    pid: int
    start: int


class StartReason(str, enum.Enum):
    """Why there is a start event."""

    RUNNING = "running"
    """It was there when we attached."""
    FORK = "fork"
    """fork, vfork, clone or clone3 made a new thread group."""
    EXEC = "exec"
    """A successful execve replaced the image."""


class EndReason(str, enum.Enum):
    """Why there is an end event."""

    EXIT = "exit"
    """The last thread returned a status."""
    SIGNAL = "signal"
    """A signal killed the thread group."""
    EXEC = "exec"
    """The image was replaced; the process lives on."""
    GONE = "gone"
    """It vanished between two snapshots; how it ended was not seen (poll mode, or a trap taken too late)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a thread group died, from the kernel's exit code (see wait(2)).

    ``code`` is the status it gave (None if a signal killed it), ``signal`` the signal that killed
    it (None otherwise), ``core`` whether the kernel flagged a core dump.
    """

    code: int | None
    signal: int | None
    core: bool

    @classmethod
    def from_kernel(cls, exit_code: int) -> ExitStatus:
        """Decode `exit_code` of `task_struct` or `signal_struct`: signal in bits 0-6, core flag in bit 7."""
        signal = exit_code & 0x7F
        if signal:
            return cls(code=None, signal=signal, core=bool(exit_code & 0x80))
        return cls(code=(exit_code >> 8) & 0xFF, signal=None, core=False)

    @property
    def reason(self) -> EndReason:
        """Why there is an end event of a thread group that died so."""
        return EndReason.EXIT if self.signal is None else EndReason.SIGNAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """Inode numbers of the process's namespaces, as in /proc/PID/ns; None where unreadable."""

    pid: int | None = None
    mnt: int | None = None
    net: int | None = None
    uts: int | None = None
    ipc: int | None = None
    cgroup: int | None = None
    user: int | None = None


class Capabilities(NamedTuple):
    """Bit masks, bit n for capability n (capabilities(7))."""

    effective: int
    permitted: int
    inheritable: int
    bounding: int
    ambient: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What a process may do, and on whose behalf; None where unreadable.

    ``ns_uid`` and so on: its ids as it sees them itself, in its user namespace; those of `Process` are the
    host's.  ``seccomp``: 0 none, 1 strict, 2 filters.  ``login_uid``, ``session_id``: of the login (audit),
    also None if there was none.  ``tty``: (major, minor) of the controlling terminal, also None without one.
    """

    ns_uid: int | None = None
    ns_gid: int | None = None
    ns_euid: int | None = None
    ns_egid: int | None = None
    capabilities: Capabilities | None = None
    no_new_privs: bool | None = None
    seccomp: int | None = None
    login_uid: int | None = None
    session_id: int | None = None
    tty: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process (thread group) with one image, as it was when the event became true.

    ``pid`` and ``ppid`` are tgids in the initial pid namespace, ``ns_pid`` is the tgid in the
    process's own.  ``task`` is the guest-virtual address of the leader's `task_struct`, ``asid``
    the gpa of its top-level page table (None for a kernel thread).  ``start_ns`` is UTC in ns since
    the epoch by the guest's own clock.  ``generation`` is `self_exec_id`: it tells images of one
    process apart.  ``comm`` has at most 15 bytes, as the kernel keeps it.

    ``exe`` and ``cwd`` are what the links of /proc/PID show to a process with the same root, with the
    kernel's `` (deleted)`` behind an unlinked name.  One to which the root does not lead (a chroot, another
    mount namespace, a tree that was unmounted while in use) begins with ``(unreachable)``, as getcwd(2) has
    it.  A program without a file has the name that the kernel makes for it: ``/memfd:NAME (deleted)``.
    """

    identity: Identity
    generation: int
    pid: int
    ppid: int
    parent: Identity | None = None
    comm: str
    kernel: bool
    task: GuestVirtual
    asid: Asid | None
    start_ns: int | None = None
    exe: str | None = None
    args: tuple[str, ...] | None = None
    args_truncated: bool = False
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    euid: int | None = None
    egid: int | None = None
    ns_pid: int | None = None
    pgid: int | None = None
    sid: int | None = None
    namespaces: Namespaces | None = None
    cgroup: str | None = None
    container_id: str | None = None
    security: Security | None = None
    exited: ExitStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """When an event was seen, and how.

    ``time_ns`` is UTC in ns since the epoch by the observer's clock; ``trigger`` says what
    showed it (``"attach"``, ``"timer"``, ``"proof"``, ``"resync"``, ``"rewind"``, or the kernel function
    that was trapped); ``late_ns`` is for how long the event may have been true already: since the trap was
    taken, while the vCPU was held; of what a snapshot found, since the snapshot before, but no longer than
    the process is old;
    ``missed`` is how many tasks came and went unseen up to now, by the kernel's own counters;
    ``boottime`` is the guest's boot clock in ns at that moment (for a trap, when it was taken), which
    `Identity.start` is by, too; None if it is not known.
    """

    time_ns: int
    trigger: str
    late_ns: int = 0
    missed: int = 0
    boottime: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStart:
    """A process began to run an image."""

    process: Process
    reason: StartReason
    occasion: Occasion


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExec:
    """A process replaced its image: between the end of ``old`` and the start of ``new``."""

    old: Process
    new: Process
    occasion: Occasion


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnd:
    """An image ended: the thread group died, or exec replaced it.  ``process`` is the full identity."""

    process: Process
    reason: EndReason
    status: ExitStatus | None
    occasion: Occasion


Event = ProcessStart | ProcessExec | ProcessEnd


def is_kernels(event: Event) -> bool:
    """Whether an event is about a kernel thread, and so is shown on request only.

    A kernel worker that became a process has no end and no exec for the user, only a start.
    """
    return (event.old if isinstance(event, ProcessExec) else event.process).kernel
