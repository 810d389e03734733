"""Guest-physical memory behind a Volatility layer, as a `live.core.memory.MemoryReader`.

Theory of operation
-------------------
Volatility stacks formats (ELF core, LiME, AVML, VMware, QEMU suspend, ...) on a `FileLayer`; such a layer is
indexed by gpa.  If the stack is a local, uncompressed file and runs of it (raw, ELF, LiME), the file is
mapped and the runs are slices of the mapping, which needs no copies and none of the layers' caches.
Everything else is read through the layer, with a copy for each read.

Known warts
-----------
* ``flat`` exists only if all of RAM is one run from gpa 0, because holes must read as zeros.
* The mapping is owned by its views and is closed with the last of them.
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
from live.core.memory import InPlace, MemoryReader, Run, Segment, merged

_FLASH = (0xFF00_0000, 1 << 32)
"""Gpas of a PC's firmware flash; QEMU's ELF cores contain it as a segment, but it is not RAM."""


class _Runs(InPlace):
    """The common part of both readers: which gpas are RAM."""

    description = "from a file"

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = merged(runs)
        self.segments: tuple[Segment, ...] = tuple(
            Segment(start=run.start, length=run.length) for run in self.runs
        )
        self._starts = [run.start for run in self.runs]

    def find(self, gpa: int, length: int) -> Run:
        """The run that holds all ``length`` bytes.  Raises `MemoryFault` with the first gpa outside."""
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
    """A `MemoryReader` over runs of a mapped file; every read is a view."""

    def __init__(self, view: memoryview, runs: Sequence[Run]) -> None:
        """``view``: the whole file.  Runs are cut at its end."""
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
    """A `MemoryReader` over any Volatility layer that is indexed by gpa; every read is a copy."""

    flat: memoryview | None = None

    def __init__(self, layer: Any) -> None:
        """Get the layer's address ranges; nothing is read."""
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
    """The fastest reader of the guest-physical memory of a Volatility layer.

    ``context``: the layer's.  The content of the image never makes this raise.
    """
    base, runs = _base(layer, context)
    if base is not None:
        live = getattr(base._file, "memory", None)  # a `GuestFile`
        if live is not None and runs is None:
            reader: MemoryReader = live
            return reader
        view = _mapped(base._file)
        if view is not None:
            return FileMemory(view, runs if runs is not None else [Run(0, 0, len(view))])
    return LayerMemory(layer)


def _base(layer: Any, context: Any) -> tuple[Any, list[Run] | None]:
    """(file layer, runs of it); runs None: all of it; layer None: not simply runs of a file."""
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
        # urllib wraps the file of a file URL once or twice.
        inner = getattr(file, "fp", None) or getattr(file, "file", None)
        return _mapped(inner) if inner is not None and inner is not file and not _decodes(file) else None
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):  # empty, a pipe, a device without a length
        return None


def _decodes(file: Any) -> bool:
    """Whether a file object may return other bytes than the file that it wraps (a decompressor)."""
    return not type(file).__module__.startswith("urllib")


def _valid(layer: Any) -> Iterator[tuple[int, int]]:
    """(start, length) of the valid ranges of a layer, ascending."""
    first, last = layer.minimum_address, layer.maximum_address
    if not hasattr(layer, "mapping"):
        yield first, last - first + 1
        return
    for start, length, *_ in layer.mapping(first, last - first + 1, ignore_errors=True):
        yield start, length
