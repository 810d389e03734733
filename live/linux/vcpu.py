"""What a vCPU in the kernel works on, from its registers."""

from __future__ import annotations

from collections.abc import Mapping

from live.core.errors import MemoryFault, SymbolsMissing
from live.linux.kernel import LinuxKernel
from live.linux.kernel_memory import START_KERNEL_MAP
from live.linux.layout import field

_TASK_NEW = 0x0800  # include/linux/sched.h, since 4.8 (kernel commit 7dc603c9028e)
_HOLDERS = ("rdi", "rbx", "rbp", "r12", "r13", "r14", "r15")
"""Where a function has its 1st argument: as it came, or in a register that outlives calls (psABI)."""
_MASK = (1 << 64) - 1


class VcpuTasks:
    """Readers of the tasks that the registers of a vCPU lead to; the vCPU is in the kernel."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Nothing is read yet.  Raises `SymbolsMissing`."""
        self._memory = kernel.memory
        self._current = _current(kernel)
        # task_struct.state became __state in 5.14 (kernel commit 2f064a59a11f).
        self._state = kernel.unpacker("task_struct", (field("__state", "state"),))

    def current(self, registers: Mapping[str, int]) -> int:
        """The address of the task that runs.  Raises `MemoryFault`."""
        return self._memory.u64((registers.get("gs_base", 0) + self._current) & _MASK)

    def newborn(self, registers: Mapping[str, int]) -> int:
        """The address of the task that a function has as its argument and that never ran so far.

        Which register holds it is the compiler's choice; that it has not been woken tells it from its parent.
        Raises `MemoryFault` if there is none.
        """
        first, last = self._memory.direct, self._memory.direct + self._memory.limit
        for name in _HOLDERS:
            address = registers.get(name, 0)
            # A task_struct comes from a slab: the direct map has it.
            if first <= address < last and not address & 7 and self._is_new(address):
                return address
        raise MemoryFault(registers.get("rip", 0), "no register holds a new task", "virtual")

    def _is_new(self, address: int) -> bool:
        try:
            return bool(self._state(address)[0] == _TASK_NEW)
        except MemoryFault:
            return False


def _current(kernel: LinuxKernel) -> int:
    """What to add to gs_base for the address of the pointer to the current task."""
    symbols = kernel.symbols
    # A variable of its own; in pcpu_hot from 6.2 (kernel commit e57ef2ed97c1) to 6.14.
    value = symbols.symbol("current_task")
    if value is None:
        value = symbols.symbol("pcpu_hot")
        if value is None:
            raise SymbolsMissing(
                "this kernel does not say where its current task is; watch it with --mode poll"
            )
        value += symbols.offset("pcpu_hot", "current_task")
    # Per-CPU symbols are offsets; from 6.15 on (kernel commit 9d7de2aa8b41) addresses like all others.
    return value + kernel.place.kaslr_shift if value >= START_KERNEL_MAP else value
