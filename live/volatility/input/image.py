"""A memory image, in any format that Volatility opens, and the Linux kernel in it."""

from __future__ import annotations

import sys
import urllib.parse
from typing import Any

from volatility3 import framework
from volatility3.framework import contexts, exceptions, interfaces
from volatility3.framework.automagic import stacker
from volatility3.framework.layers import physical

from live.arch import architecture
from live.core.errors import MemoryFault, NoKernelFound, TargetError
from live.core.memory import MemoryReader
from live.core.snapshot import Snapshot
from live.core.system import System
from live.linux.clock import KernelClock
from live.linux.kernel import LinuxKernel
from live.linux.layout import SymbolTable
from live.linux.record import KernelRecord
from live.linux.system import LinuxSystem
from live.volatility.input import finder
from live.volatility.input.memory import memory_of
from symbols.guest import symbol_table

_FORMATS = "volatility3.framework.layers."
MACHINE = "x86_64"


def open_memory(location: str, progress: finder.Progress | None = None) -> MemoryReader:
    """The guest-physical memory of the image at the URL ``location``.

    Raises `TargetError` if it cannot be opened or is certainly no memory image.
    """
    context = contexts.Context()
    path = interfaces.configuration.path_join("pse", "FileLayer")
    context.config[interfaces.configuration.path_join(path, "location")] = location
    try:
        base = physical.FileLayer(context, path, "FileLayer")
        context.add_layer(base)
        header = base.read(0, finder.HEADER, pad=True)
    except (OSError, ValueError, exceptions.VolatilityException) as error:
        raise TargetError(
            f"{shown(location)} cannot be opened ({error}); give the path of a memory image"
        ) from error
    what = finder.unreadable(header)
    if what is not None:
        raise TargetError(f"{shown(location)} is {what}")
    framework.import_files(sys.modules["volatility3.framework.layers"])
    # Stackers of formats only (they go by the file's first bytes), not those of operating systems.
    # Volatility keeps the former in volatility3.framework.layers.
    formats = sorted(
        (
            one
            for one in framework.class_subclasses(interfaces.automagic.StackerLayerInterface)
            if one.__module__.startswith(_FORMATS)
        ),
        key=lambda one: int(one.stack_order),
    )
    top = stacker.LayerStacker.stack_layer(context, "FileLayer", formats, progress)[0]
    return memory_of(context.layers[top], context)


class Image:
    """One memory image with a Linux kernel in it.

    ``kernel`` reads tasks, ``processes`` their details; ``system`` is the boot.  ``time_ns``: UTC ns of the
    image by the guest's own clock, 0 if unknown.
    """

    def __init__(self, location: str, progress: finder.Progress | None = None) -> None:
        """Open the image, find the kernel, and get its symbol table from the cache or make it.

        Raises `TargetError`, `NoKernelFound`, `SymbolsMissing`.
        """
        self.location = location
        self.name = shown(location)
        self.found = finder.find(open_memory(location, progress), progress=progress)
        kernel, memory = self.found.kernel, self.found.memory
        table = SymbolTable(symbol_table(kernel, memory, progress=progress))
        record = KernelRecord.of(kernel)
        try:
            # An image does not say its architecture; `finder` finds x86-64 kernels only.
            self.os = LinuxSystem(
                LinuxKernel(memory, table, record.place, architecture(MACHINE)), record, notes=kernel.notes
            )
        except MemoryFault as fault:
            raise NoKernelFound(
                f"{self.name}: a kernel was found, but its data is not in the image ({fault}); "
                "take the image again, with all of the guest's RAM"
            ) from fault
        self.kernel, self.processes = self.os.kernel, self.os.processes
        self.system: System = self.os.system
        clocks = KernelClock(self.kernel).read()
        self.time_ns = clocks.wall_ns if clocks else 0

    def snapshot(self, trigger: str = "image") -> Snapshot:
        """A snapshot of the task list.  Raises `MemoryFault` if the kernel's counters cannot be read."""
        return self.kernel.snapshot(self.time_ns, trigger)

    def boot(self) -> tuple[Any, ...]:
        """A value that is equal for all images of one boot and differs between boots."""
        place = self.kernel.place
        return (self.found.kernel.banner, place.kaslr_shift, place.phys_base, self.kernel.memory.direct)


def shown(location: str) -> str:
    """A location as a user writes it: the path of a file URL, else the URL."""
    parsed = urllib.parse.urlparse(location)
    return urllib.parse.unquote(parsed.path) if parsed.scheme == "file" else location
