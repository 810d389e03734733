"""Where the Linux kernel itself finishes each step in the life of a process.

Theory of operation
-------------------
`osi_pse` inferred process events from asid changes and system calls, and had to guess when the
kernel's transient state was over.  kallsyms gives the address of every kernel function, so the guess
is not needed: a code address is trapped at which the step is done and its result is an argument.

=========  ======================  ==========================================================
moment     function                why there
=========  ======================  ==========================================================
FORK       wake_up_new_task        kernel_clone() calls it for every new task, complete and on
                                   the task list, before it ran one instruction
EXEC       proc_exec_connector     exec_binprm() calls it after the new image is installed: comm,
                                   mm, argv, creds are final; a failed exec never gets here
DEATH      taskstats_exit          do_exit() calls it when `signal->live` and `exit_code` are
                                   final and mm is still there; its 2nd argument says whether
                                   the thread group is dead
=========  ======================  ==========================================================

One place each serves every way in: fork, vfork, clone and clone3; execve, execveat and the
kernel's own usermode helpers; exit, exit_group and fatal signals, from 64-bit, compat or x32
code, with or without PTI.  Nothing else the guest does is trapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.memory import GuestVirtual
from live.core.tasklist import Happening, Moment
from live.core.traps import CodeHit, TrapRequest
from live.introspect.linux import LinuxKernel


@dataclass(frozen=True, slots=True)
class Point:
    """A kernel function that is called when ``moment`` is complete, with the task in its 1st argument.

    ``functions`` are alternatives, best first.  ``when_second`` set: it counts only if the 2nd
    argument, a 32-bit int, is not 0.  ``lasting``: what it tells stays in memory until the task makes a
    system call, or comes to another point.
    """

    moment: Moment
    functions: tuple[str, ...]
    when_second: bool = False
    lasting: bool = False


POINTS = (
    Point(Moment.FORK, ("wake_up_new_task",), lasting=True),
    Point(Moment.EXEC, ("proc_exec_connector",), lasting=True),
    # mm goes right behind it, and the task_struct when the parent has reaped it.
    Point(Moment.DEATH, ("taskstats_exit",), when_second=True),
)


class Reached(NamedTuple):
    """What a trap at a point means.

    ``happening`` is None for what is no step of a thread group: a new thread, a thread's own exit.
    ``created`` is (tid, start_boottime) of a new task, thread or process; None otherwise.
    """

    function: str
    happening: Happening | None
    created: tuple[int, int] | None = None


class LifecyclePoints:
    """The points of one running kernel: what to trap, and what a trap means.

    Raises `SymbolsMissing` if the kernel has none of a point's functions.
    """

    def __init__(self, kernel: LinuxKernel) -> None:
        """Resolve the functions."""
        self._kernel = kernel
        found: dict[int, tuple[str, Point]] = {}
        for point in POINTS:
            for name in point.functions:
                address = kernel.symbol(name)
                if address is not None:
                    found[address] = (name, point)
                    break
            else:
                raise SymbolsMissing(
                    f"this kernel has no {' or '.join(point.functions)}, so {point.moment.value} cannot be "
                    "trapped; watch it with --mode poll"
                )
        self._points: Mapping[int, tuple[str, Point]] = found

    @property
    def addresses(self) -> frozenset[GuestVirtual]:
        """Guest-virtual addresses to trap, KASLR shift included."""
        return frozenset(GuestVirtual(address) for address in self._points)

    @property
    def request(self) -> TrapRequest:
        """What to arm: every point, held."""
        return TrapRequest(code=self.addresses)

    @property
    def lasting(self) -> frozenset[GuestVirtual]:
        """Those of `addresses` at which the vCPU need not stand: a fence will do."""
        return frozenset(GuestVirtual(at) for at, (_, point) in self._points.items() if point.lasting)

    def reached(self, hit: CodeHit) -> Reached | None:
        """What a trap at one of `addresses` means; None for another address or an unreadable task."""
        known = self._points.get(hit.pc)
        if known is None:
            return None
        name, point = known
        if point.when_second and not hit.registers["rsi"] & 0xFFFF_FFFF:
            return Reached(name, None)
        address = hit.registers["rdi"]
        try:
            raw = self._kernel.task(address)
            pid, tgid, start = raw[1], raw[2], raw[7]
            if point.moment is Moment.FORK and pid != tgid:
                return Reached(name, None, (pid, start))
            task = self._kernel.read_task(address)
        except MemoryFault:
            return None
        created = (pid, start) if point.moment is Moment.FORK else None
        if point.moment is Moment.DEATH:
            task = task._replace(dead=True)
        # The kernel is at the end of execve here: its in_execve bit is still set, the task is final.
        return Reached(name, Happening(point.moment, task._replace(transient=False)), created)
