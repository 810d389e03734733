"""The newest tasks of a running kernel: copy_process() adds at the tail of the task list."""

from __future__ import annotations

from collections.abc import Iterator

from live.core.errors import MemoryFault
from live.core.snapshot import Task
from live.linux.kernel import MAX_TASKS, LinuxKernel
from live.linux.layout import field


class Backwards:
    """Walks the task list from its end."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Compile the reader.  Raises `SymbolsMissing`."""
        self._kernel = kernel
        self._first = kernel.address("init_task")
        self._offset = kernel.symbols.offset("task_struct", "tasks")
        self._previous = kernel.unpacker("task_struct", (field("tasks.prev"),))

    def __iter__(self) -> Iterator[Task]:
        """The leaders on the list, the newest first; bounded.  Raises `MemoryFault`, for a loop, too."""
        address = self._first
        seen: set[int] = set()
        for _ in range(MAX_TASKS):
            address = self._previous(address)[0] - self._offset
            if address == self._first:
                return
            if address in seen:
                raise MemoryFault(address, "the task list bites its tail", "virtual")
            seen.add(address)
            yield self._kernel.read_task(address)
