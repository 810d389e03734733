"""Linux as an operating system of `live.core.system`: the system itself, and its finder."""

from __future__ import annotations

import lzma
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from live.core.errors import MemoryFault, NoKernelFound, SymbolsMissing
from live.core.events import Process
from live.core.hypervisor import UnplacedRam
from live.core.machine import Architecture, Registers
from live.core.memory import MemoryReader
from live.core.snapshot import Counters, Snapshot, Task
from live.core.system import Progress, System
from live.linux.asids import LinuxAsids
from live.linux.boot import BootReader, boot_key
from live.linux.cmdline import MAX_ARGS
from live.linux.details import ProcessReader
from live.linux.freed import FreedTasks
from live.linux.kernel import LinuxKernel
from live.linux.layout import SymbolTable
from live.linux.points import LifecyclePoints
from live.linux.record import KernelRecord
from symbols import ram_file
from symbols.cache import Cache
from symbols.guest import find_kernel, symbol_table

_TICK_S = 0.5
_CURRENT = "current"
"""In the header of a recording: its steps have read what `LinuxSystem.uptime` reads."""
_MAX_ARGS, _ENDLESS = "max_args", 1 << 30
"""In the header of a recording: bytes of a command line that were kept."""


class LinuxSystem:
    """A running Linux; a `live.core.system.OperatingSystem`.

    ``kernel`` reads its structures, ``processes`` the details of a process.
    """

    name = "linux"

    def __init__(
        self,
        kernel: LinuxKernel,
        record: KernelRecord,
        *,
        notes: tuple[str, ...] = (),
        system: System | None = None,
        current: bool = True,
        max_args: int = MAX_ARGS,
    ) -> None:
        """``record``: the kernel's identity; ``system``: the boot's, read from memory if None.

        ``current``: the memory holds clock, boot, and how a freed task ended, as they are at each step; not
        so in recordings that were made before these were read at each step.  ``max_args``: bytes of a command
        line that are kept.  Raises `SymbolsMissing`.
        """
        self.kernel, self.record, self.notes = kernel, record, notes
        self._boot, self._freed, self._current = BootReader(kernel), FreedTasks(kernel), current
        self.system = system or self._boot.first()
        self.processes = ProcessReader(kernel, self.system.boot_ns, max_args=max_args)

    @property
    def title(self) -> str:
        """``"Linux 6.1.0-56-cloud-amd64"``."""
        return self.record.title

    @property
    def memory(self) -> MemoryReader:
        """See `live.core.system.OperatingSystem.memory`."""
        return self.kernel.memory.physical

    def counters(self) -> Counters:
        """See `live.core.system.OperatingSystem.counters`."""
        return self.kernel.counters()

    def snapshot(self, time_ns: int, trigger: str) -> Snapshot:
        """See `live.core.system.OperatingSystem.snapshot`."""
        return self.kernel.snapshot(time_ns, trigger)

    def revisit(self, task: Task) -> Task | None:
        """See `live.core.system.OperatingSystem.revisit`."""
        return self._freed.revisit(task, current=self._current)

    def same_boot(self) -> bool:
        """See `live.core.system.OperatingSystem.same_boot`."""
        self.memory.refresh()
        return boot_key(self.kernel) == self.system.key

    def uptime(self) -> int | None:
        """See `live.core.system.OperatingSystem.uptime`."""
        if not self._current:
            return None
        clocks = self._boot.clocks()
        self.system = self._boot.again(self.system, clocks)
        self.processes.boot_ns = self.system.boot_ns
        return clocks.boot_ns if clocks else None

    def keep(self, *, max_args: int) -> None:
        """See `live.core.system.OperatingSystem.keep`."""
        self.processes.max_args = max_args

    def describe(self, task: Task, *, standing: bool = False) -> Process:
        """See `live.core.system.OperatingSystem.describe`."""
        return self.processes.describe(task, standing=standing)

    @cached_property
    def _points(self) -> LifecyclePoints:
        return LifecyclePoints(self.kernel)

    def points(self) -> LifecyclePoints:
        """See `live.core.system.OperatingSystem.points`."""
        return self._points

    @cached_property
    def _asids(self) -> LinuxAsids:
        return LinuxAsids(self.kernel)

    def asids(self) -> LinuxAsids:
        """See `live.core.system.OperatingSystem.asids`."""
        return self._asids

    def runs(self, registers: Registers) -> bool:
        """Whether the page tables of a vCPU with these registers map this kernel where it was found.

        After a reset, RAM still holds the kernel of the previous boot until something is loaded over it.
        """
        address = self.kernel.address("init_task")
        expected = self.kernel.memory.gpa(address)
        for root in self.kernel.machine.roots(registers):
            try:
                if self.kernel.user_space(root).gpa(address) == expected:
                    return True
            except MemoryFault:
                continue
        return False

    def ticking(self) -> bool:
        """Whether the guest's wall clock advances within `_TICK_S` seconds; takes no longer than that."""
        self.memory.refresh()
        before, until = self._boot.clocks(), time.monotonic() + _TICK_S
        while time.monotonic() < until:
            time.sleep(_TICK_S / 25)
            self.memory.refresh()
            if self._boot.clocks() != before:
                return True
        return False

    def over(self, memory: MemoryReader) -> LinuxSystem:
        """See `live.core.system.OperatingSystem.over`."""
        kernel = LinuxKernel(memory, self.kernel.symbols, self.kernel.place, self.kernel.machine)
        most = self.processes.max_args
        return LinuxSystem(kernel, self.record, notes=self.notes, system=self.system, max_args=most)

    def recorded(self) -> Mapping[str, Any]:
        """See `live.core.system.OperatingSystem.recorded`."""
        return {**self.record.encode(), _CURRENT: True, _MAX_ARGS: self.processes.max_args}

    def symbols(self) -> bytes:
        """The symbol table as ISF text.  Raises `SymbolsMissing` if its file cannot be read."""
        path = self.kernel.symbols.path
        try:
            raw = path.read_bytes()
            return lzma.decompress(raw) if path.suffix == ".xz" else raw
        except (OSError, lzma.LZMAError) as error:
            raise SymbolsMissing(f"{path} cannot be read ({error}); delete it and run again") from error


class LinuxFinder:
    """Detects Linux in guest memory; a `live.core.system.Finder`.

    The symbol table comes from the cache, or is made from guest memory.
    """

    name = "linux"

    def __init__(self, cache: Cache | None = None) -> None:
        """``cache``: of symbol tables; None: the user's, `Cache.default`."""
        self._cache = cache

    def place(self, ram: UnplacedRam, machine: Architecture) -> bool:
        """See `live.core.system.Finder.place`."""
        runs = ram_file.best(ram.size, ram.placed)
        if runs is None:
            return False
        ram.place(runs)
        return True

    def find(
        self, memory: MemoryReader, machine: Architecture, progress: Progress | None = None
    ) -> LinuxSystem:
        """See `live.core.system.Finder.find`."""
        found = find_kernel(memory, cache=self._cache, progress=progress)
        table = SymbolTable(symbol_table(found, memory, self._cache, progress=progress))
        record = KernelRecord.of(found)
        try:
            system = LinuxSystem(LinuxKernel(memory, table, record.place, machine), record, notes=found.notes)
        except MemoryFault as fault:
            raise NoKernelFound(
                f"a kernel was found, but its data is not where it should be ({fault}); if the guest is "
                "still booting, try again in a few seconds"
            ) from fault
        if not system.system.key:
            raise NoKernelFound(
                f"the kernel {record.release} in this memory has no first process yet: the guest is still "
                "booting, try again in a second"
            )
        return system

    def recall(
        self, memory: MemoryReader, machine: Architecture, kernel: object, symbols: bytes, system: System
    ) -> LinuxSystem:
        """See `live.core.system.Finder.recall`."""
        record = KernelRecord.decode(kernel)
        with tempfile.TemporaryDirectory(prefix="pse-") as directory:
            path = Path(directory) / "recorded.json"
            path.write_bytes(symbols)
            found = LinuxKernel(memory, SymbolTable(path), record.place, machine)
        said: Mapping[str, Any] = kernel if isinstance(kernel, Mapping) else {}
        most = said.get(_MAX_ARGS, MAX_ARGS)
        if type(most) is not int or not 0 < most < _ENDLESS:
            raise ValueError("its header has no limit of a command line")
        current = said.get(_CURRENT) is True
        return LinuxSystem(found, record, system=system, current=current, max_args=most)


LINUX = LinuxFinder()
