"""What Linux's asids and system calls tell: a `live.core.system.AsidRules`.

Needs `init_task`, `total_forks`, `nr_threads` and types; no function of the kernel.  Where its system-call
entry points are known, vCPUs need not stand so often (fences).

=================  ===========================  ==============================================================
what               where                        why there
=================  ===========================  ==============================================================
a task came, went  total_forks, nr_threads      copy_process(), __unhash_process(): with the list
a process died     task_struct.exit_state       exit_notify() sets it when the exit code is final, before the
                                                mm's page tables can be freed
... leader first   signal_struct.live           the leader has exited before: the last thread takes it to 0
not complete yet   task_struct.__state          TASK_NEW until wake_up_new_task()
no asid of its own clone, clone3 with CLONE_VM  the child runs in its parent's: no asid change tells of it
                   and without CLONE_THREAD;
                   vfork
=================  ===========================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Identity
from live.core.memory import GuestPhysical
from live.core.snapshot import Task
from live.core.traps import Abi, CallFlags, Syscall, Word
from live.linux.entries import entries
from live.linux.kernel import LinuxKernel
from live.linux.layout import field
from live.linux.newest import Backwards
from live.linux.vcpu import TASK_NEW, VcpuTasks

# include/uapi/linux/sched.h
CLONE_VM, CLONE_THREAD = 0x100, 0x1_0000

MOST_NEW = 64
"""Tasks behind the last known one for which the whole list need not be read."""

Flags = Callable[["LinuxAsids", Syscall], int]
FLAGS: Mapping[str, Flags] = {
    "clone": lambda rules, call: rules.argument(call),
    "vfork": lambda rules, call: CLONE_VM,
    "clone3": lambda rules, call: rules.pointed(call),  # struct clone_args begins with its flags
}
"""System call -> where it has its CLONE_* flags."""


class LinuxAsids:
    """The rules of one running kernel."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Raises `MemoryFault` or `SymbolsMissing`."""
        self._kernel = kernel
        self._calls = kernel.facts.calls
        self._backwards = Backwards(kernel)
        self._state = kernel.unpacker("task_struct", (field("__state", "state"),))
        self._exit_state = kernel.symbols.offset("task_struct", "exit_state")
        self._live = kernel.symbols.offset("signal_struct", "live")
        self.kernel = frozenset({kernel.machine.asid_of(kernel.place.root)})
        self.words: Sequence[Word] = (
            self._word(kernel.address("total_forks"), 8),
            self._word(kernel.address("nr_threads")),
        )
        self.syscalls = frozenset(self._calls[Abi.NATIVE])
        self.compat_syscalls = frozenset(self._calls[Abi.COMPAT])
        self.entries = entries(kernel)
        self.waits = kernel.facts.waits
        try:
            self._tasks: VcpuTasks | None = VcpuTasks(kernel)
        except SymbolsMissing:
            self._tasks = None

    def _word(self, address: int, size: int = 4) -> Word:
        return Word(gpa=GuestPhysical(self._kernel.memory.gpa(address)), size=size)

    @property
    def call_flags(self) -> frozenset[CallFlags]:
        """A clone() without CLONE_VM, which is fork(), is none of ours."""
        return frozenset(
            CallFlags(number=number, abi=abi, bits=CLONE_VM)
            for abi, names in self._calls.items()
            for number, name in names.items()
            if name == "clone"
        )

    def task(self, address: int) -> Task | None:
        """See `live.core.system.AsidRules.task`."""
        try:
            return self._kernel.read_task(address)
        except MemoryFault:
            return None

    def newest(self, known: Callable[[int], Identity | None]) -> Sequence[Task] | None:
        """See `live.core.system.AsidRules.newest`: copy_process() adds at the tail."""
        found: list[Task] = []
        try:
            for task in self._backwards:
                if known(task.address) == task.identity:
                    return found[::-1]
                if len(found) >= MOST_NEW:
                    return None
                found.append(task)
        except MemoryFault:
            return None
        return found[::-1]

    def marks(self, task: Task) -> Sequence[Word]:
        """`exit_state`; of a leader that has exited, `signal->live`."""
        try:
            if not task.exit_state:
                return (self._word(task.address + self._exit_state),)
            return (self._word(self._kernel.task(task.address).signal + self._live),)
        except MemoryFault:
            return ()

    def unfinished(self, task: Task) -> bool:
        """Whether it is in the state TASK_NEW."""
        try:
            return bool(self._state(task.address)[0] == TASK_NEW)
        except MemoryFault:
            return False

    def shares(self, call: Syscall) -> bool:
        """Whether it is a call for a process, not a thread, in the caller's address space."""
        name = self._calls[call.abi].get(call.number)
        if name is None:
            return False
        flags = FLAGS[name](self, call)
        return bool(flags & CLONE_VM and not flags & CLONE_THREAD)

    def argument(self, call: Syscall) -> int:
        """The first argument of a call."""
        return self._kernel.machine.call_argument(call.registers, call.abi, 0)

    def pointed(self, call: Syscall) -> int:
        """The u64 to which it points; that of a process in the same asid if it cannot be read."""
        try:
            raw = self._kernel.user_space(call.asid).read(self.argument(call), 8)
        except MemoryFault:
            return CLONE_VM
        return int.from_bytes(raw, "little")

    def caller(self, call: Syscall) -> int:
        """The current task of the vCPU."""
        if self._tasks is None:
            return 0
        try:
            return self._tasks.current_in_user(call.registers)
        except MemoryFault:
            return 0
