"""A process of this host, held so that nothing else can be mistaken for it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from pathlib import Path

from live.core.errors import GuestGone, NoTarget, NotPermitted
from live.hypervisors.host.maps import PROC
from live.hypervisors.host.memory import open_mem

_KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD of include/linux/sched.h, in the ninth field of /proc/PID/stat."""
_MAX_PID = 1 << 22
"""PID_MAX_LIMIT of include/linux/threads.h."""


def parse_pid(target: str | None) -> int:
    """The pid that a target names.  Raises `NoTarget`."""
    if target is None:
        raise NoTarget("No process is named; give the process id of the VMM, as `ps` shows it.")
    if not (target.isascii() and target.isdigit() and len(target) <= 9 and 0 < int(target) <= _MAX_PID):
        raise NoTarget(f"{target!r} is no process id; give the number that `ps` shows for the VMM.")
    return int(target)


class Process:
    """A process and its address space as they are now, by a pidfd and a descriptor of /proc/PID/mem."""

    def __init__(self, pid: int) -> None:
        """Raises `NoTarget` if there is no such process, or if it can run no guest."""
        self.pid = pid
        self._memory = -1
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise NoTarget(f"{pid} is a thread; give the id of its process, as `ps` shows it.") from None
            raise NoTarget(
                f"There is no process {pid}; give the id of the VMM's process, as `ps` shows it."
            ) from None
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)
        self.command = command_of(pid)
        """Its name for the kernel, at most 15 bytes; the process chooses it, so escape it."""
        # Without the right to do so, an exec goes unnoticed; whether memory can be had is for others to say.
        with contextlib.suppress(NotPermitted, GuestGone):
            self._memory = open_mem(pid)

    def alive(self) -> bool:
        """Whether it runs, and still executes the same program; two system calls."""
        return self._pidfd >= 0 and not self._poll.poll(0) and not self.replaced()

    def replaced(self) -> bool:
        """Whether its address space is gone: it has ended, or executed another program."""
        if self._memory < 0:
            return False
        try:
            return os.pread(self._memory, 1, 0) == b""
        except OSError:  # nothing is ever mapped at address 0, but there is an address space
            return False

    def close(self) -> None:
        """Let go of it.  Safe to call twice."""
        for descriptor in (self._pidfd, self._memory):
            if descriptor >= 0:
                os.close(descriptor)
        self._pidfd = self._memory = -1


def command_of(pid: int, proc: Path = PROC) -> str:
    """What the kernel calls a process (comm); ``"?"`` if that cannot be read."""
    try:
        with (proc / str(pid) / "comm").open("rb") as file:
            return file.read(64).decode("utf-8", "replace").removesuffix("\n")
    except OSError:
        return "?"


def why_no_memory(pid: int, proc: Path = PROC) -> str:
    """Why a process has no mappings at all, as a phrase: ``"is a thread of this host's kernel"``."""
    try:
        with (proc / str(pid) / "stat").open("rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        if int(fields[6]) & _KERNEL_THREAD:
            return "is a thread of this host's kernel"
    except (OSError, ValueError, IndexError):
        pass
    return "has ended"


def keeps_memory_from_host(pid: int, proc: Path = PROC) -> bool:
    """Whether a process has guest memory that this host cannot read (a guest_memfd of KVM)."""
    directory = proc / str(pid) / "fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if "kvm-gmem" in os.readlink(directory / name):
                    return True
    return False
