"""How a process ended whose structures the kernel has freed already.

The kernel does not clear a freed `task_struct` or `signal_struct`: until the memory is used again, they still
hold the exit code.
"""

from __future__ import annotations

from live.core.errors import MemoryFault
from live.core.snapshot import Task
from live.linux.kernel import PF_EXITING, SIGNAL_GROUP_EXIT, LinuxKernel
from live.linux.layout import field
from live.linux.structs import TaskStruct


class FreedTasks:
    """Reads tasks that have left the list."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Compile the reader."""
        self._kernel = kernel
        known = kernel.symbols.has("signal_struct", "curr_target")
        self._last_thread = kernel.unpacker("signal_struct", (field("curr_target"),)) if known else None

    def revisit(self, task: Task, *, current: bool = True) -> Task | None:
        """The task with its exit code; None if its memory does not show its exit.

        Not ``current``: the memory has the `task_struct` as it is now, and the `signal_struct` of an earlier
        moment (recordings of older versions); then the leader's code is taken.
        """
        try:
            found = self._kernel.task(task.address)
        except MemoryFault:
            return None
        if (found.tgid, found.start_boottime) != task.identity or not found.flags & PF_EXITING:
            return None
        code = self._group_code(task, found) if current else found.exit_code
        return task._replace(flags=found.flags, exit_code=code, dead=True) if code is not None else None

    def _group_code(self, task: Task, found: TaskStruct) -> int | None:
        """The exit code of a thread group that is gone, as wait_task_zombie() has it; None if it is unknown.

        The leader's own does not tell where there were other threads, which may have lived on.  A
        `signal_struct` that was not used again names the leader as the last thread (`curr_target`).
        """
        alone = found.exit_code if task.threads <= 1 else None
        if self._last_thread is None:
            return alone
        try:
            signal = self._kernel.signal(found.signal)
            last = self._last_thread(found.signal)[0]
        except MemoryFault:
            return alone
        if last != task.address:  # it was used again
            return alone
        if signal.live > 0 or signal.nr_threads > 1:
            return None
        return signal.group_exit_code if signal.flags & SIGNAL_GROUP_EXIT else found.exit_code
