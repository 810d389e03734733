"""Guest-physical memory behind a Volatility layer, as a `live.core.memory.MemoryReader`.

Theory of operation
-------------------
Volatility stacks formats (ELF core, LiME, AVML, VMware, QEMU suspend, ...) on a `FileLayer`; every such layer
is indexed by gpa.  Where the stack is a local, uncompressed file and runs of it (raw, ELF, LiME), the file is
mapped and runs become slices of the mapping: no copy, and none of the layers' caches.  Anything else is read
through the layer, a copy for each read.

Warts: ``flat`` is there only if all of RAM is one run from gpa 0, because a hole must read as zeros.  The
mapping is owned by the views of it and goes with the last of them.
"""

from __future__ import annotations

import bisect
import io
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

from volatility3.framework import exceptions
from volatility3.framework.layers import physical, segmented

from live.core.errors import MemoryFault
from live.core.memory import MemoryReader, Segment
from symbols.ram_file import Run

_FLASH = (0xFF00_0000, 1 << 32)
"""Where a PC has its firmware; ELF cores of QEMU have it as a segment, but it is no RAM."""


class _Runs:
    """The part that both readers share: which gpa is RAM."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = _merged(runs)
        self.segments: tuple[Segment, ...] = tuple(
            Segment(start=run.start, length=run.length) for run in self.runs
        )
        self._starts = [run.start for run in self.runs]

    def find(self, gpa: int, length: int) -> Run:
        """The run that holds all of ``length`` bytes; raises `MemoryFault` with the first that is not."""
        index = bisect.bisect_right(self._starts, gpa) - 1
        if index < 0:
            raise MemoryFault(gpa)
        run = self.runs[index]
        end = run.start + run.length
        if gpa >= end:
            raise MemoryFault(gpa)
        if gpa + length > end:
            raise MemoryFault(end)
        return run


class FileMemory(_Runs):
    """A mapped file, or runs of it; every read is a view."""

    def __init__(self, view: memoryview, runs: Sequence[Run]) -> None:
        """``view`` is the whole file.  Runs that the file does not hold are cut."""
        self.view = view
        inside = [
            Run(run.start, run.offset, min(run.length, len(view) - run.offset))
            for run in runs
            if 0 <= run.offset < len(view) and run.length > 0
        ]
        super().__init__(inside)
        self.flat: memoryview | None = None
        if len(self.runs) == 1 and self.runs[0].start == 0:
            only = self.runs[0]
            self.flat = view[only.offset : only.offset + only.length]

    def read(self, gpa: int, length: int) -> memoryview:
        """See `live.core.memory.MemoryReader.read`."""
        run = self.find(gpa, length)
        at = gpa - run.start + run.offset
        return self.view[at : at + length]


class LayerMemory(_Runs):
    """Any Volatility layer that is indexed by gpa; every read is a copy."""

    flat: memoryview | None = None

    def __init__(self, layer: Any) -> None:
        """Asks the layer which addresses it has; nothing is read."""
        self._layer = layer
        super().__init__([Run(start, start, length) for start, length in _valid(layer)])

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`."""
        self.find(gpa, length)
        try:
            data: bytes = self._layer.read(gpa, length)
        except exceptions.InvalidAddressException as error:
            address = int(error.invalid_address)
            fault = address if gpa <= address < gpa + length else gpa
            raise MemoryFault(fault, "the image cannot be read there") from error
        return data


def memory_of(layer: Any, context: Any) -> MemoryReader:
    """The fastest reader of the guest-physical memory that a Volatility layer shows.

    ``context`` is the one in which the layer lives.  Never raises on account of the image.
    """
    base, runs = _base(layer, context)
    if base is not None:
        live = getattr(base._file, "memory", None)  # our own URL handler's file
        if live is not None and runs is None:
            reader: MemoryReader = live
            return reader
        view = _mapped(base._file)
        if view is not None:
            return FileMemory(view, runs if runs is not None else [Run(0, 0, len(view))])
    return LayerMemory(layer)


def _base(layer: Any, context: Any) -> tuple[Any, list[Run] | None]:
    """(the file layer below, runs of it); (None, ...) if the layer is not simply runs of a file."""
    if isinstance(layer, physical.FileLayer):
        return layer, None
    if isinstance(layer, segmented.SegmentedLayer):
        below = context.layers[layer.config["base_layer"]]
        if isinstance(below, physical.FileLayer):
            if any(length != mapped for _, _, length, mapped in layer._segments):
                return None, None  # compressed
            runs = [Run(int(at), int(offset), int(length)) for at, offset, length, _ in layer._segments]
            return below, [
                run for run in runs if not _FLASH[0] <= run.start < run.start + run.length <= _FLASH[1]
            ]
    return None, None


def _mapped(file: Any) -> memoryview | None:
    """The whole of a local file, mapped; None for anything that is no plain file."""
    if not isinstance(file, io.BufferedReader) or not isinstance(file.raw, io.FileIO):
        # What urllib makes of a file URL wraps the file once or twice.
        inner = getattr(file, "fp", None) or getattr(file, "file", None)
        return _mapped(inner) if inner is not None and inner is not file and not _decodes(file) else None
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):  # empty, a pipe, a device without a length
        return None


def _decodes(file: Any) -> bool:
    """Whether a file object is known to pass on bytes other than those of the file below it."""
    return not type(file).__module__.startswith("urllib")


def _valid(layer: Any) -> Iterator[tuple[int, int]]:
    """(start, length) of what the layer holds, ascending."""
    first, last = layer.minimum_address, layer.maximum_address
    if not hasattr(layer, "mapping"):
        yield first, last - first + 1
        return
    for start, length, *_ in layer.mapping(first, last - first + 1, ignore_errors=True):
        yield start, length


def _merged(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Ascending by gpa; neighbours joined; what overlaps an earlier one left out."""
    merged: list[Run] = []
    for run in sorted(runs):
        if merged:
            start, offset, length = merged[-1]
            end = start + length
            if run.start < end:
                continue
            if run.start == end and run.offset == offset + length:
                merged[-1] = Run(start, offset, length + run.length)
                continue
        merged.append(run)
    return tuple(merged)
