"""The tasks that the registers of a vCPU in the kernel lead to."""

from __future__ import annotations

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.machine import Registers
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

TASK_NEW = 0x0800  # include/linux/sched.h, since 4.8 (kernel commit 7dc603c9028e)
_MASK = (1 << 64) - 1


class VcpuTasks:
    """Finds tasks from the registers of a vCPU that executes kernel code."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Compile the readers.  Raises `SymbolsMissing`."""
        self._memory, self._machine = kernel.memory, kernel.machine
        self._current = _current(kernel)
        # task_struct.state became __state in 5.14 (kernel commit 2f064a59a11f).
        self._state = kernel.unpacker("task_struct", (field("__state", "state"),))

    def current(self, registers: Registers) -> int:
        """Guest-virtual address of the current task's `task_struct`.  Raises `MemoryFault`."""
        return self._memory.u64((self._machine.cpu_base(registers) + self._current) & _MASK)

    def current_in_user(self, registers: Registers) -> int:
        """The same of a vCPU that executes a user's program.  Raises `MemoryFault`."""
        return self._memory.u64((self._machine.cpu_base_in_user(registers) + self._current) & _MASK)

    def newborn(self, registers: Registers) -> int:
        """Guest-virtual address of the new task that the function being executed has as its argument.

        The compiler chooses the register that holds it.  The state TASK_NEW tells it from its parent.  Raises
        `MemoryFault` if no register holds a new task.
        """
        first, last = self._memory.direct, self._memory.direct + self._memory.limit
        for address in self._machine.first_argument_somewhere(registers):
            # A task_struct is a slab object, so its address is in the direct map.
            if first <= address < last and not address & 7 and self._is_new(address):
                return address
        raise MemoryFault(registers.get(self._machine.pc, 0), "no register holds a new task", "virtual")

    def _is_new(self, address: int) -> bool:
        try:
            return bool(self._state(address)[0] == TASK_NEW)
        except MemoryFault:
            return False


def _current(kernel: LinuxKernel) -> int:
    """Offset of the pointer to the current task from the per-CPU base.  Raises `SymbolsMissing`."""
    symbols = kernel.symbols
    # A per-CPU variable; in pcpu_hot from 6.2 (kernel commit e57ef2ed97c1) to 6.14.
    value = symbols.symbol("current_task")
    if value is None:
        value = symbols.symbol("pcpu_hot")
        if value is None:
            raise SymbolsMissing(
                "this kernel does not say where its current task is; watch it with --mode poll"
            )
        value += symbols.offset("pcpu_hot", "current_task")
    # Per-CPU symbols are offsets; from 6.15 (kernel commit 9d7de2aa8b41) they are kernel addresses.
    return value + kernel.place.kaslr_shift if value >= kernel.facts.image else value
