"""The sources of symbol tables, with one interface: memory images and kernel files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from live.core.memory import MemoryReader
from symbols.cache import Cache
from symbols.guest import Kernel, Progress, decode, find_kernel, landmarks_of, search, symbol_table
from symbols.images import Image, image_of, open_file
from symbols.isf import Json
from symbols.kernel_image import KernelImage, is_kernel, kernel_image
from symbols.landmarks import Landmarks
from symbols.table import KernelTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened source."""

    path: Path
    kind: str
    """A description, for the output."""
    content: Image | KernelImage
    """A memory image, or an unpacked kernel file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Types and symbols from a source; ``running``: the kernel in RAM if the source is a memory image."""

    table: KernelTable
    landmarks: Landmarks
    running: Kernel | None = None


def open_source(path: Path | str) -> Source:
    """Open a memory image or a kernel file.  Raises `TargetError`."""
    path = Path(path)
    view = open_file(path)
    if is_kernel(view):
        return Source(path=path, kind="a Linux kernel", content=kernel_image(view, path.name))
    memory = image_of(view, path.name)
    return Source(path=path, kind=memory.kind, content=memory)


def decode_memory(memory: MemoryReader, progress: Progress | None = None) -> Decoded:
    """Types and symbols of the running kernel in a memory.  Raises `NoKernelFound` or `SymbolsMissing`."""
    kernel = search(memory, None, progress)
    return Decoded(table=kernel.decoded.pop(), landmarks=kernel.landmarks, running=kernel)


def decode_source(source: Source, progress: Progress | None = None) -> Decoded:
    """Types and symbols from a source.  Raises `NoKernelFound` or `SymbolsMissing`."""
    if isinstance(source.content, Image):
        return decode_memory(source.content, progress)
    data, va = source.content.data, source.content.va
    if progress is not None:
        progress(20.0, "Decoding the kernel's types and symbols")
    table = decode(data, va, 0, None)
    return Decoded(table=table, landmarks=landmarks_of(table, data, va))


def kernel_tables(path: Path | str) -> KernelTable:
    """Types and symbols from a file.  Raises `TargetError`, `NoKernelFound`, `SymbolsMissing`."""
    return decode_source(open_source(path)).table


def build(path: Path | str, cache: Cache, *, full: bool = False, progress: Progress | None = None) -> Path:
    """The path in ``cache`` of the table of the kernel in a file; made if it is not there.

    ``full``: with every type of the kernel.  Raises `TargetError`, `NoKernelFound`, `SymbolsMissing`.
    """
    source = open_source(path)
    memory = source.content
    if isinstance(memory, Image):
        kernel = find_kernel(memory, cache=cache, progress=progress)
        return symbol_table(kernel, memory, cache, full=full, progress=progress)
    decoded = decode_source(source, progress)
    known = cache.find(decoded.landmarks.banner, decoded.landmarks.build_id, full=full)
    return known or cache.store(decoded.landmarks, decoded.table.isf(full=full), full=full)


def isf(path: Path | str, *, full: bool = False, progress: Progress | None = None) -> Json:
    """The ISF of the kernel in a file, newly made.  Raises like `build`."""
    return decode_source(open_source(path), progress).table.isf(full=full)
