"""From the name of a guest to a kernel that can be looked at: everything is found on the way.

Attach to the hypervisor, find the living kernel in guest RAM, make or fetch its symbol table,
compile the readers.  Nothing is asked of the user, and nothing of the guest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from live.arch.x86_64 import PageTable
from live.core.errors import GuestGone, MemoryFault, NoKernelFound, SymbolsMissing, TargetError
from live.core.memory import MemoryReader
from live.core.traps import CodeHit, TrapRequest, TrapSource
from live.hypervisors.qemu.offers import Choice
from live.hypervisors.registry import adapter
from live.linux.boot import System, read_system
from live.linux.details import ProcessReader
from live.linux.kernel import KernelPlace, LinuxKernel
from live.linux.layout import SymbolTable
from live.linux.points import LifecyclePoints
from symbols.cache import Cache
from symbols.guest import Kernel, find_kernel, symbol_table

Progress = Callable[[float, str], None]
"""Called with a percentage (0..100) and what is being done."""

_ALIVE_CHECK_S = 0.25
_RUNNING_TRIES, _RUNNING_WAIT_S = 3, 0.02
_TABLES = (0x000F_FFFF_FFFF_F000, 0x000F_FFFF_FFFF_E000)


def introspect(
    memory: MemoryReader, *, cache: Cache | None = None, progress: Progress | None = None
) -> tuple[Kernel, LinuxKernel]:
    """Find the kernel in ``memory`` and compile the readers for it.

    Raises `NoKernelFound` or `SymbolsMissing`, each with what to do next.
    """
    found = find_kernel(memory, cache=cache, progress=progress)
    table = SymbolTable(symbol_table(found, memory, cache, progress=progress))
    place = KernelPlace(
        kaslr_shift=found.kaslr_shift, phys_base=found.phys_base, dtb=found.dtb, la57=found.la57
    )
    try:
        return found, LinuxKernel(memory, table, place)
    except MemoryFault as fault:
        raise NoKernelFound(
            f"a kernel was found, but its data is not where it should be ({fault}); if the guest is still "
            "booting, try again in a few seconds"
        ) from fault


class Session:
    """One attached guest with a running Linux kernel; a context manager.

    ``guest`` is the adapter's guest (``memory``, ``info``, ``alive()``); ``kernel`` reads tasks,
    ``processes`` completes them, ``system`` says which boot of which host this is.
    """

    def __init__(
        self, target: str | None = None, *, hypervisor: str = "qemu", progress: Progress | None = None
    ) -> None:
        """Attach to ``target``: a monitor socket, a pid, a VM name; None for the only running guest.

        Raises `TargetError` if there is no such guest or it may not be read, `NoKernelFound` or
        `SymbolsMissing` if there is nothing in it that can be introspected.
        """
        self._adapter = adapter(hypervisor)
        self.guest = self._adapter.attach(target)
        try:
            self.found, self.kernel = introspect(self.guest.memory, progress=progress)
            self._require_running()
            self.system: System = read_system(self.kernel)
            self.processes = ProcessReader(self.kernel, self.system.boot_ns)
        except BaseException:
            self.guest.close()
            raise
        self._alive_at = time.monotonic()

    def _require_running(self) -> None:
        """The kernel that was found is the one that a vCPU runs: its page table maps it where it was found.

        After a reset RAM holds the kernel of the boot before, unharmed, until something is loaded over it.
        Raises `NoKernelFound`.
        """
        address = self.kernel.address("init_task")
        expected = self.kernel.memory.gpa(address)
        for _ in range(_RUNNING_TRIES):
            self.kernel.memory.refresh()
            registers = self.guest.registers(self.guest.vcpus[0])
            # With PTI bit 12 tells the user's table from the kernel's; without, it may belong to the address.
            tables = (
                {registers.get("cr3", 0) & mask for mask in _TABLES}
                if registers.get("cr0", 0) >> 31
                else set()
            )
            for table in tables:
                with contextlib.suppress(MemoryFault):
                    if PageTable(self.guest.memory, table, self.kernel.levels).gpa(address) == expected:
                        return
            time.sleep(_RUNNING_WAIT_S)
        raise NoKernelFound(
            f"the guest {self.name} does not run the kernel that is in its memory: it was reset, and boots "
            "again, or is in its boot loader; try again in a few seconds"
        )

    @property
    def name(self) -> str:
        """The guest's name on this host."""
        return str(self.guest.info.name)

    def sleep(self, seconds: float) -> None:
        """Wait; raises `GuestGone` when the guest has ended or was reset meanwhile."""
        time.sleep(seconds)
        now = time.monotonic()
        if now - self._alive_at < _ALIVE_CHECK_S:
            return
        self._alive_at = now
        if not self.guest.alive():
            raise GuestGone(f"the guest {self.name} has ended")
        if "RESET" in self.guest.events():
            raise GuestGone(f"the guest {self.name} was reset; run pse watch again to follow its new boot")

    def choose(self, mode: str) -> Choice:
        """How to be told of what happens: "plugin", "gdbstub", "poll", or "auto" for the best there is.

        Raises `TargetError` if the guest does not offer ``mode``.
        """
        poll_only: str | None = getattr(self.guest.memory, "poll_only", None)
        if poll_only and mode not in ("auto", "poll"):
            raise TargetError(f"{mode} mode cannot be had: {poll_only}")
        ways: frozenset[type] = frozenset({CodeHit})
        with contextlib.suppress(SymbolsMissing):  # said by whoever needs the points: `request`
            ways = LifecyclePoints(self.kernel).ways
        choice: Choice = self._adapter.choose(self.guest, "poll" if poll_only else mode, ways=ways)
        return replace(choice, skipped=(f"trapped: {poll_only}",)) if poll_only else choice

    def request(self, source: TrapSource) -> TrapRequest:
        """What ``source`` is to be armed with.  Raises `SymbolsMissing` if the kernel lacks a function."""
        return LifecyclePoints(self.kernel).request(source.prefers)

    def close(self) -> None:
        """Let go of the guest; it runs on as if never watched."""
        self.guest.close()

    def __enter__(self) -> Session:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
