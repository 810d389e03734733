"""The program that a process runs, put together again out of its memory.

Theory of operation
-------------------
At exec the kernel writes down for the new image where its program headers are (``AT_PHDR`` and ``AT_PHNUM``
in ``mm_struct.saved_auxv``).  The ELF header opens the page that holds them, the first ``PT_LOAD`` says at
which address the file's beginning was linked, so the difference is where the image was loaded.  Each
``PT_LOAD`` goes back to its place in the file.

Warts: pages that the process never touched are not in its page tables, even if the kernel has them in its
page cache; they stay zero and are counted.  Section headers are not loaded, so the file has none; writable
segments are as the process has changed them.  The process is hostile: it may have overwritten all of this.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from live.arch.x86_64 import PageTable
from live.core.errors import MemoryFault
from live.core.events import Process
from live.core.memory import PAGE_SIZE
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

_AT_PHDR, _AT_PHNUM = 3, 5  # include/uapi/linux/auxvec.h
_PT_LOAD = 1
_EHDR = struct.Struct("<4sB11xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SECTIONS = ((40, 48), (60, 64))
"""e_shoff, e_shnum and e_shstrndx in the ELF header: zero says that there are no section headers."""
_MAX_HEADERS = 64
MAX_SIZE = 256 << 20
"""Bytes of a program that are put together; what claims to be larger is refused."""


class Program(NamedTuple):
    """The bytes of an ELF file; of its ``pages`` in memory, ``missing`` could not be read and are zero."""

    data: bytes
    pages: int
    missing: int


def program_of(kernel: LinuxKernel, process: Process) -> Program:
    """The program that ``process`` runs, as it is in memory now.

    Raises `MemoryFault` if it has no memory any more, or there is no 64-bit ELF image in it.
    """
    if process.asid is None:
        raise MemoryFault(process.task, "the process has no memory", "virtual")
    (mm,) = kernel.unpacker("task_struct", (field("mm"),))(process.task)
    (pgd,) = kernel.unpacker("mm_struct", (field("pgd"),))(mm)
    # Read anew, not the event's asid: an exec since then has another.
    table = PageTable(kernel.memory.physical, kernel.memory.gpa(pgd), kernel.levels)
    auxv = kernel.memory.read(mm + kernel.symbols.offset("mm_struct", "saved_auxv"), 320)
    vector = dict(pair for pair in struct.iter_unpack("<QQ", auxv) if pair[0])
    headers, count = vector.get(_AT_PHDR, 0), min(vector.get(_AT_PHNUM, 0), _MAX_HEADERS)
    first = headers & -PAGE_SIZE
    magic, width, *_ = _EHDR.unpack(table.read(first, _EHDR.size))
    if magic != b"\x7fELF" or width != 2 or not count:
        raise MemoryFault(first, "no 64-bit ELF header", "virtual")
    loads = [one for one in _PHDR.iter_unpack(table.read(headers, count * _PHDR.size)) if one[0] == _PT_LOAD]
    start = next((virtual for _, _, offset, virtual, *_ in loads if offset == 0), None)
    if start is None:
        raise MemoryFault(first, "the ELF header is in no segment", "virtual")
    size = max(offset + length for _, _, offset, _, _, length, *_ in loads)
    if size > MAX_SIZE:
        raise MemoryFault(first, f"a program of {size} bytes is not believed", "virtual")
    data = bytearray(size)
    pages = missing = 0
    for _, _, offset, virtual, _, length, *_ in loads:
        at, end = first - start + virtual, first - start + virtual + length
        while at < end:
            take = min(end - at, PAGE_SIZE - at % PAGE_SIZE)
            pages += 1
            try:
                data[offset : offset + take] = table.read(at & (1 << 64) - 1, take)
            except MemoryFault:
                missing += 1
            at, offset = at + take, offset + take  # noqa: PLW2901 -- both walk through the segment
    for start, end in _SECTIONS:
        data[start:end] = bytes(end - start)
    return Program(bytes(data), pages, missing)
