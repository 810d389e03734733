"""Where the Linux kernel itself finishes each step in the life of a process.

Theory of operation
-------------------
`osi_pse` inferred process events from asid changes and system calls, and had to guess when the
kernel's transient state was over.  kallsyms gives the address of every kernel function, so the guess
is not needed: a function is trapped at which the step is done and its result is an argument.

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

The same moments by data
------------------------
Where a watchpoint is cheaper than a breakpoint, the word is watched that such a function reads
first.  The vCPU then stands in the function, with the arguments wherever the compiler wants them;
what is needed is found otherwise:

=========  ===================  ========================  ====================================
moment     function             word                      the task
=========  ===================  ========================  ====================================
FORK       perf_event_fork      nr_namespaces_events      the one that was never woken, in some
                                                          register (`VcpuTasks.newborn`)
EXEC       proc_exec_connector  proc_event_num_listeners  the current one
DEATH      taskstats_exit       family_registered         the current one; `signal->live` says
                                                          whether the thread group is dead
=========  ===================  ========================  ====================================

copy_process() calls perf_event_fork() a little before wake_up_new_task(), behind the last step that
can fail and behind cgroup_post_fork(); proc_fork_connector() is before that.  proc_exit_connector()
is no place for DEATH: the parent knows by then, and the leader may have been freed.

`signal->live` falls to 0 before any thread but the last need have come to taskstats_exit(), so two
threads that exit at once may both find 0 there.  Where synchronize_group_exit() exists (5.19), the group's
code is final then.  Before, it may be the leader's, which is final when the leader itself has come
this far: a thread that is first leaves the DEATH to it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from live.arch.operands import behind_accesses
from live.core.errors import MemoryFault, SymbolsMissing
from live.core.memory import GuestPhysical, GuestVirtual
from live.core.snapshot import Happening, Moment, Task
from live.core.traps import Access, CodeHit, Entry, Fence, TrapRequest, Watchpoint
from live.linux.kernel import PF_EXITING, SIGNAL_GROUP_EXIT, LinuxKernel
from live.linux.vcpu import VcpuTasks

_SPAN = 256
"""Bytes of a function in which it must read its word, and in which a vCPU that did so is found."""
WAITS = frozenset({61, 247})
"""wait4 and waitid (asm/unistd_64.h): what most parents do as soon as they have forked."""
_ENTRIES = {
    "entry_SYSCALL_64": Entry.SYSCALL,
    "entry_SYSCALL_compat": Entry.INT80,  # the instruction's, from 32-bit code: its table is what counts
    "entry_SYSENTER_compat": Entry.SYSENTER,
    "entry_INT80_compat": Entry.INT80,
    "asm_int80_emulation": Entry.INT80,  # from 6.7 on, and in stable kernels of before
}
"""Where system calls begin (arch/x86/entry)."""
_MAX_LEFT = 4096
"""Leaders that are remembered to have left before their group died."""


@dataclass(frozen=True, slots=True)
class Point:
    """A kernel function that is called when ``moment`` is complete, with the task in its 1st argument.

    ``when_second`` set: it counts only if the 2nd argument, a 32-bit int, is not 0.  ``reader`` is
    a function that is called at the same moment and reads the global ``word``.
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
"""Who else reads the words: nothing that we want to know of."""


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

    Raises `SymbolsMissing` if the kernel lacks a point's function.
    """

    def __init__(self, kernel: LinuxKernel) -> None:
        """Resolve the functions."""
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
        """Functions that read a word, by address, ascending; None for those that are no point."""
        names: dict[str, Point | None] = {name: None for names in _OTHER_READERS.values() for name in names}
        names.update({point.reader: point for point in POINTS})
        found = {self._kernel.symbol(name): point for name, point in names.items()}
        return {address: found[address] for address in sorted(each for each in found if each is not None)}

    @cached_property
    def _reader_addresses(self) -> list[int]:
        return list(self._readers)

    @property
    def addresses(self) -> frozenset[GuestVirtual]:
        """Guest-virtual addresses of the functions to trap, KASLR shift included."""
        return frozenset(GuestVirtual(address) for address in self._points)

    @cached_property
    def watchpoints(self) -> frozenset[Watchpoint]:
        """The same by data: the words, and where a vCPU stands that read one; empty if there is no way."""
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
        return frozenset(GuestVirtual(pc) for pc in behind_accesses(code, address, target))

    @property
    def ways(self) -> frozenset[type]:
        """The classes of traps by which every moment can be had."""
        return frozenset({CodeHit, Access} if self.watchpoints else {CodeHit})

    def request(self, prefers: type = CodeHit) -> TrapRequest:
        """What to arm, held: every point; by the class of trap that the source prefers, if possible."""
        if prefers is Access and self.watchpoints:
            return TrapRequest(accesses=self.watchpoints)
        entries = self._entries
        code = self.addresses | {address for address, _ in entries}
        try:
            gpas = frozenset(GuestPhysical(self._kernel.memory.gpa(address)) for address in code)
        except MemoryFault:
            gpas = frozenset()
        return TrapRequest(code=self.addresses, entries=entries, gpas=gpas)

    @property
    def _entries(self) -> frozenset[tuple[GuestVirtual, Entry]]:
        """Where the kernel begins a system call; empty if not even that of 64-bit code is known."""
        found = {name: self._kernel.symbol(name) for name in _ENTRIES}
        if found["entry_SYSCALL_64"] is None:
            return frozenset()
        return frozenset(
            (GuestVirtual(address), _ENTRIES[name]) for name, address in found.items() if address is not None
        )

    @property
    def fences(self) -> frozenset[Fence]:
        """`addresses`, at which a task with an mm need not stand.

        A start stays in memory as it is until the task makes a system call.  Until then nobody need be kept
        from waiting for a child: a new task cannot be reaped before the trap of its own death.

        An end outlives its mm: even where the parent reaps it at once, the task_struct and signal_struct are
        freed a grace period later (delayed_put_task_struct()), and stay as they are until a fork needs
        their memory: a system call again.  A fork that was under way before is told by PF_EXITING: see
        `reached`.

        A task without an mm is the kernel's own, which makes no system call: it changes its name, and
        becomes a process, as it likes.
        """
        mm = self._kernel.symbols.offset("task_struct", "mm")
        return frozenset(
            Fence(
                code=GuestVirtual(at),
                offset=mm,
                passing=WAITS if point.moment is Moment.FORK else frozenset(),
            )
            for at, point in self._points.items()
        )

    def reached(self, trap: CodeHit | Access) -> Reached | None:
        """What a trap of `request` means; None for another one, or a task that is unreadable or gone."""
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
        if point.when_second and not hit.registers["rsi"] & 0xFFFF_FFFF:
            return Reached(point.function, None)
        return self._happened(point.moment, point.function, hit.registers["rdi"])

    def _at_word(self, point: Point, access: Access) -> Reached | None:
        if point.moment is Moment.FORK:
            return self._happened(point.moment, point.reader, self._tasks.newborn(access.registers))
        address = self._tasks.current(access.registers)
        if point.moment is Moment.DEATH and not self._is_last(address):
            return Reached(point.reader, None)
        return self._happened(point.moment, point.reader, address)

    def _is_last(self, address: int) -> bool:
        """Whether the group of a task in taskstats_exit() is dead, and its exit code final."""
        raw = self._kernel.task(address)
        signal, leader = raw[11], raw[12]
        live, flags, *_ = self._kernel.signal(signal)
        if live > 0:
            if address == leader:
                self._left[address] = raw[7]
                if len(self._left) > _MAX_LEFT:
                    del self._left[next(iter(self._left))]
            return False
        if address == leader or flags & SIGNAL_GROUP_EXIT:
            return True
        of_leader = self._kernel.task(leader)
        return not of_leader[9] or self._left.get(leader) == of_leader[7]

    def _happened(self, moment: Moment, function: str, address: int) -> Reached | None:
        raw = self._kernel.task(address)
        pid, tgid, flags, start = raw[1], raw[2], raw[3], raw[7]
        created = (pid, start) if moment is Moment.FORK else None
        if created and pid != tgid:
            return Reached(function, None, created)
        task: Task = self._kernel.read_task(address, raw)
        if moment is Moment.DEATH:
            if not flags & task.flags & PF_EXITING:
                return None  # its memory, or its leader's, is another task's by now
            task = task._replace(dead=True)
        # The kernel is at the end of execve here: its in_execve bit is still set, the task is final.
        return Reached(function, Happening(moment, task._replace(transient=False)), created)
