"""The kernel functions at which each step in the life of a process is complete, and how they are trapped.

Theory of operation
-------------------
From asid changes and system calls alone (as PANDA's `osi_pse` has them) an observer has to infer when
the kernel's transient state is over.  kallsyms gives the address of every kernel function.  So for each
step a function is trapped that the kernel calls when the step is complete, with the task as an argument.

=========  ======================  ==========================================================
moment     function                why there
=========  ======================  ==========================================================
FORK       wake_up_new_task        kernel_clone() calls it for every new task, which is complete
                                   and on the task list and has not run an instruction
EXEC       proc_exec_connector     exec_binprm() calls it after the new image is installed: comm,
                                   mm, argv and creds are final; a failed exec does not get here
DEATH      taskstats_exit          do_exit() calls it when `signal->live` and `exit_code` are
                                   final and the mm is still there; its 2nd argument says
                                   whether the thread group is dead
=========  ======================  ==========================================================

Each function covers every path to its step: fork, vfork, clone and clone3; execve, execveat and
usermode helpers; exit, exit_group and fatal signals; 64-bit, compat and x32 code; with and without
PTI.  Nothing else that the guest does is trapped.

Watchpoints
-----------
Where a watchpoint costs the guest less than a breakpoint, the trap is a read of a global word that a
function reads first.  The vCPU is then inside the function, where the arguments are in registers of the
compiler's choice, so the task is found in another way:

=========  ===================  ========================  ====================================
moment     function             word                      the task
=========  ===================  ========================  ====================================
FORK       perf_event_fork      nr_namespaces_events      a task in a register that was never
                                                          woken (`VcpuTasks.newborn`)
EXEC       proc_exec_connector  proc_event_num_listeners  the current task
DEATH      taskstats_exit       family_registered         the current task; `signal->live` says
                                                          whether the thread group is dead
=========  ===================  ========================  ====================================

copy_process() calls perf_event_fork() shortly before wake_up_new_task(), after its last step that can
fail and after cgroup_post_fork(); proc_fork_connector() comes before those.  proc_exit_connector() is
too late for DEATH: the parent has been notified and the leader may have been freed.

`signal->live` is decremented before taskstats_exit(), so two threads that exit together may both find 0
there.  With synchronize_group_exit() (since 5.19) the group's exit code is final by then.  Without it,
the group's exit code may be that of the leader, which is final when the leader itself has reached
taskstats_exit().  A thread that gets there before the leader therefore leaves the DEATH to the leader.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.memory import GuestVirtual
from live.core.snapshot import Happening, Moment
from live.core.system import Reached
from live.core.traps import Access, CodeHit, Fence, TrapRequest, Watchpoint
from live.linux.entries import entries
from live.linux.kernel import PF_EXITING, SIGNAL_GROUP_EXIT, LinuxKernel
from live.linux.vcpu import VcpuTasks

_SPAN = 256
"""Bytes from the start of a function within which it must read its word."""
_MAX_LEFT = 4096
"""Most leaders that are remembered as having exited before their group."""


@dataclass(frozen=True, slots=True)
class Point:
    """A kernel function that is called when ``moment`` is complete, with a `task_struct *` as 1st argument.

    ``when_second``: only a call whose 2nd argument, an int, is not 0 counts.  ``reader``: a function that
    is called at the same moment and reads ``word``, a global variable of 4 bytes.
    """

    moment: Moment
    function: str
    reader: str
    word: str
    when_second: bool = False


POINTS = (
    Point(Moment.FORK, "wake_up_new_task", "perf_event_fork", "nr_namespaces_events"),
    Point(Moment.EXEC, "proc_exec_connector", "proc_exec_connector", "proc_event_num_listeners"),
    Point(Moment.DEATH, "taskstats_exit", "taskstats_exit", "family_registered", when_second=True),
)
_OTHER_READERS = {
    "nr_namespaces_events": ("perf_event_namespaces",),
    "proc_event_num_listeners": (
        "proc_fork_connector",
        "proc_id_connector",
        "proc_sid_connector",
        "proc_ptrace_connector",
        "proc_comm_connector",
        "proc_coredump_connector",
        "proc_exit_connector",
    ),
}
"""Other functions that read a word; their reads are no moment."""


class LifecyclePoints:
    """The points of one running kernel: a `live.core.system.LifecyclePoints`."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Resolve the functions.  Raises `SymbolsMissing` if the kernel lacks one."""
        self._kernel = kernel
        self._points: dict[int, Point] = {}
        for point in POINTS:
            address = kernel.symbol(point.function)
            if address is None:
                raise SymbolsMissing(
                    f"this kernel has no {point.function}, so {point.moment.value} cannot be trapped; "
                    "watch it with --mode poll"
                )
            self._points[address] = point
        self._left: dict[int, int] = {}

    @cached_property
    def _tasks(self) -> VcpuTasks:
        return VcpuTasks(self._kernel)

    @cached_property
    def _readers(self) -> Mapping[int, Point | None]:
        """Address -> point of the functions that read a word, ascending; None: one of `_OTHER_READERS`."""
        names: dict[str, Point | None] = {name: None for names in _OTHER_READERS.values() for name in names}
        names.update({point.reader: point for point in POINTS})
        found = {self._kernel.symbol(name): point for name, point in names.items()}
        return {address: found[address] for address in sorted(each for each in found if each is not None)}

    @cached_property
    def _reader_addresses(self) -> list[int]:
        return list(self._readers)

    @property
    def addresses(self) -> frozenset[GuestVirtual]:
        """Run-time guest-virtual addresses of the functions to trap."""
        return frozenset(GuestVirtual(address) for address in self._points)

    @cached_property
    def watchpoints(self) -> frozenset[Watchpoint]:
        """The points as watchpoints; empty if this kernel cannot be trapped by them."""
        found = set()
        try:
            _ = self._tasks
            for point in POINTS:
                behind = self._behind(point.word, point.reader)
                if not behind:
                    return frozenset()
                others = [self._behind(point.word, name) for name in _OTHER_READERS.get(point.word, ())]
                word = GuestVirtual(self._kernel.address(point.word))
                found.add(Watchpoint(word=word, behind=behind, others=frozenset().union(*others) - behind))
        except (MemoryFault, SymbolsMissing):
            return frozenset()
        return frozenset(found)

    def _behind(self, word: str, function: str) -> frozenset[GuestVirtual]:
        target, address = self._kernel.symbol(word), self._kernel.symbol(function)
        if target is None or address is None or target % 4:
            return frozenset()
        code = self._kernel.memory.read(address, _SPAN)
        behind = self._kernel.machine.behind_accesses(code, address, target)
        return frozenset(map(GuestVirtual, behind))

    @property
    def ways(self) -> frozenset[type]:
        """The trap classes that each can report every moment."""
        return frozenset({CodeHit, Access} if self.watchpoints else {CodeHit})

    def request(self, prefers: type = CodeHit) -> TrapRequest:
        """A request for every point, held; as watchpoints if preferred and possible."""
        if prefers is Access and self.watchpoints:
            return TrapRequest(accesses=self.watchpoints)
        return TrapRequest(code=self.addresses, entries=entries(self._kernel))

    @property
    def fences(self) -> frozenset[Fence]:
        """Fences at all `addresses`, for tasks with an mm.

        FORK, EXEC: what a start event reports stays unchanged until the task makes a system call.  wait4 and
        waitid may pass the fence of a FORK, because a new task cannot be reaped before the trap of its own
        death.

        DEATH: the mm may go, but the end event does not need it.  Even if the parent reaps the task at once,
        its `task_struct` and `signal_struct` are freed a grace period later (delayed_put_task_struct()) and
        keep their content until a fork reuses the memory, which takes another system call.  A fork that was
        already under way is detected by PF_EXITING, see `_happened`.

        A task without an mm is a kernel task.  It makes no system call and may rename itself or become a
        process at any time, so its vCPU is held.
        """
        mm, waits = self._kernel.symbols.offset("task_struct", "mm"), self._kernel.facts.waits
        return frozenset(
            Fence(
                code=GuestVirtual(at),
                offset=mm,
                passing=waits if point.moment is Moment.FORK else frozenset(),
            )
            for at, point in self._points.items()
        )

    def reached(self, trap: CodeHit | Access) -> Reached | None:
        """What a trap means; None if it is not one of `request`, or its task is unreadable or gone."""
        point = self._points.get(trap.pc) if isinstance(trap, CodeHit) else self._reader(trap.pc)
        if point is None:
            return None
        try:
            return self._at_code(point, trap) if isinstance(trap, CodeHit) else self._at_word(point, trap)
        except MemoryFault:
            return None

    def _reader(self, pc: int) -> Point | None:
        index = bisect_right(self._reader_addresses, pc) - 1
        if index < 0 or pc - self._reader_addresses[index] > _SPAN + 8:
            return None
        return self._readers[self._reader_addresses[index]]

    def _at_code(self, point: Point, hit: CodeHit) -> Reached | None:
        argument = self._kernel.machine.argument
        if point.when_second and not argument(hit.registers, 1) & 0xFFFF_FFFF:
            return Reached(point.function, None)
        return self._happened(point.moment, point.function, argument(hit.registers, 0))

    def _at_word(self, point: Point, access: Access) -> Reached | None:
        if point.moment is Moment.FORK:
            return self._happened(point.moment, point.reader, self._tasks.newborn(access.registers))
        address = self._tasks.current(access.registers)
        if point.moment is Moment.DEATH and not self._is_last(address):
            return Reached(point.reader, None)
        return self._happened(point.moment, point.reader, address)

    def _is_last(self, address: int) -> bool:
        """Whether the thread group of a task in taskstats_exit() is dead and its exit code final."""
        task = self._kernel.task(address)
        group = self._kernel.signal(task.signal)
        leads = address == task.group_leader
        if group.live > 0:
            if leads:
                self._left[address] = task.start_boottime
                if len(self._left) > _MAX_LEFT:
                    del self._left[next(iter(self._left))]
            return False
        if leads or group.flags & SIGNAL_GROUP_EXIT:
            return True
        leader = self._kernel.task(task.group_leader)
        return not leader.mm or self._left.get(task.group_leader) == leader.start_boottime

    def _happened(self, moment: Moment, function: str, address: int) -> Reached | None:
        found = self._kernel.task(address)
        created = (found.pid, found.start_boottime) if moment is Moment.FORK else None
        if created and found.pid != found.tgid:
            return Reached(function, None, created)
        task = self._kernel.read_task(address, found)
        if moment is Moment.DEATH:
            if not found.flags & task.flags & PF_EXITING:
                return None  # the memory of the task, or of its leader, was reused for another task
            task = task._replace(dead=True)
        # At EXEC the in_execve bit is still set, but the task is final.
        return Reached(function, Happening(moment, task._replace(transient=False)), created)
