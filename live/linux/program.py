"""The ELF program that a process runs, rebuilt from its memory.

Theory of operation
-------------------
At exec the kernel records where the program headers of the new image are (``AT_PHDR`` and ``AT_PHNUM`` in
``mm_struct.saved_auxv``).  The ELF header is at the start of the page that holds them.  The ``PT_LOAD`` with
file offset 0 gives the link address of that page; the difference is the load bias.  Each ``PT_LOAD`` is
copied to its offset in the file.

Known warts
-----------
* Pages that the process never touched are not in its page tables, even if they are in the kernel's page
  cache.  They stay zero and are counted.
* Section headers are not loaded, so the file has none.  Writable segments have their current content.
* The process is hostile: it may have overwritten any of this.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

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
"""Byte ranges of e_shoff, and of e_shnum and e_shstrndx, in the ELF header; zero means no section headers."""
_MAX_HEADERS = 64
MAX_SIZE = 256 << 20
"""Largest program in bytes; anything that claims to be larger is refused."""


class Program(NamedTuple):
    """An ELF file; ``missing`` of its ``pages`` loaded pages could not be read and are zero."""

    data: bytes
    pages: int
    missing: int


def program_of(kernel: LinuxKernel, process: Process) -> Program:
    """The program that ``process`` runs, as it is in memory now.

    Raises `MemoryFault` if the process has no memory, or no 64-bit ELF image in it; `SymbolsMissing`.
    """
    if process.asid is None:
        raise MemoryFault(process.task, "the process has no memory", "virtual")
    (mm,) = kernel.unpacker("task_struct", (field("mm"),))(process.task)
    (pgd,) = kernel.unpacker("mm_struct", (field("pgd"),))(mm)
    # Not the event's asid: the process may have exec'ed since.
    table = kernel.user_space(kernel.memory.gpa(pgd))
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
