"""A memory image as a guest that stands still: any format that Volatility opens, and the kernel in it."""

from __future__ import annotations

import sys
import urllib.parse
from typing import Any

from volatility3 import framework
from volatility3.framework import contexts, exceptions, interfaces
from volatility3.framework.automagic import stacker
from volatility3.framework.layers import physical

from live.core.errors import MemoryFault, NoKernelFound, TargetError
from live.core.memory import MemoryReader
from live.core.snapshot import Snapshot
from live.linux.boot import System, read_system
from live.linux.details import ProcessReader
from live.linux.kernel import KernelPlace, LinuxKernel
from live.linux.layout import SymbolTable, field
from live.volatility.input import finder
from live.volatility.input.memory import memory_of
from symbols.guest import symbol_table

_FORMATS = "volatility3.framework.layers."
_NS = 1_000_000_000


def open_memory(location: str, progress: finder.Progress | None = None) -> MemoryReader:
    """The guest-physical memory in the file (or at the URL) ``location``.

    Raises `TargetError` if it cannot be opened, or is certainly no memory image.
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
    # Formats only, which the host keeps apart from operating systems by package; they go by the file's first
    # bytes.
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

    ``kernel`` reads tasks, ``processes`` completes them, ``system`` says which boot this is; ``time_ns`` is
    UTC ns by the guest's own clock at the moment of the image (0 if its timekeeper was not found).
    """

    def __init__(self, location: str, progress: finder.Progress | None = None) -> None:
        """Open, find the kernel, make or fetch its symbol table.

        Raises `TargetError`, `NoKernelFound`, `SymbolsMissing`.
        """
        self.location = location
        self.name = shown(location)
        self.found = finder.find(open_memory(location, progress), progress=progress)
        kernel, memory = self.found.kernel, self.found.memory
        table = SymbolTable(symbol_table(kernel, memory, progress=progress))
        place = KernelPlace(
            kaslr_shift=kernel.kaslr_shift, phys_base=kernel.phys_base, dtb=kernel.dtb, la57=kernel.la57
        )
        try:
            self.kernel = LinuxKernel(memory, table, place)
            self.system: System = read_system(self.kernel)
        except MemoryFault as fault:
            raise NoKernelFound(
                f"{self.name}: a kernel was found, but its data is not in the image ({fault}); "
                "take the image again, with all of the guest's RAM"
            ) from fault
        self.processes = ProcessReader(self.kernel, self.system.boot_ns)
        self.time_ns = _now(self.kernel)

    def snapshot(self, trigger: str = "image") -> Snapshot:
        """The task list.  Raises `MemoryFault` only if not even its head can be read."""
        return self.kernel.snapshot(self.time_ns, trigger)

    def boot(self) -> tuple[Any, ...]:
        """What is the same in every image of one boot and different in another boot's."""
        place = self.kernel.place
        return (self.found.kernel.banner, place.kaslr_shift, place.phys_base, self.kernel.memory.direct)


def _now(kernel: LinuxKernel) -> int:
    address = kernel.symbol("tk_core", "timekeeper_data")
    if address is None:
        return 0
    inner = kernel.symbols.member("tk_data", "timekeeper")
    members = (field("xtime_sec"), field("tkr_mono.xtime_nsec"), field("tkr_mono.shift"))
    try:
        seconds, fraction, shift = kernel.unpacker("timekeeper", members)(
            address + (inner.offset if inner else 8)
        )
    except MemoryFault:
        return 0
    return int(seconds) * _NS + (int(fraction) >> min(int(shift), 63)) % _NS


def shown(location: str) -> str:
    """A location as the user wrote it: a file's path, or the URL."""
    parsed = urllib.parse.urlparse(location)
    return urllib.parse.unquote(parsed.path) if parsed.scheme == "file" else location
