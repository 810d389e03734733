"""A raw file that is not the physical address space: RAM above the PCI hole directly follows RAM below it.

Theory of operation
-------------------
A PC has a hole below 4 GiB for devices.  RAM that does not fit under it goes on at gpa 4 GiB.  A file that
*is* the RAM (`memory-backend-file`, a hypervisor's own memory file) has no hole: from the offset where low
RAM ends, gpa is offset + 4 GiB - end of low RAM.  `pmemsave` of the whole space, on the other hand, writes
the hole out.  The file does not say which of the two it is; the kernel's page tables do.  Read with the right
layout, every table that they name is in RAM and is a table; read with a wrong one, some are missing and
others turn out to be data.

The end of low RAM is chosen by the machine type (`pc_q35_init`, `pc_init1` in QEMU's hw/i386), so there are
few candidates.  The plain layout wins a draw.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, MemoryReader
from symbols.placement import locate

FOUR_GIB = 1 << 32
LOW_ENDS = (0x8000_0000, 0xC000_0000, 0xE000_0000, 0xB000_0000, 0x4000_0000)
"""Ends of low RAM in bytes: q35; i440fx and microvm; i440fx and q35 not aligned to GiB; 1 GiB."""

_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000
# Bits 52-62 of a kernel table entry that points at a table: the kernel sets none of them (Intel SDM vol. 3A,
# 4.5.4).
_RESERVED = 0x7FF << 52
_MAX_TABLES = 20_000
_ENTRIES = struct.Struct("<512Q")


class Run(NamedTuple):
    """``length`` bytes of RAM from gpa ``start``, which lie at ``offset`` of a file."""

    start: int
    offset: int
    length: int


class Fit(NamedTuple):
    """How well page tables can be followed: tables that are missing or no tables, and tables that are."""

    bad: int
    good: int


def layouts(size: int) -> list[tuple[Run, ...]]:
    """How a raw file of ``size`` bytes may be laid out, the plain one first."""
    found: list[tuple[Run, ...]] = [(Run(0, 0, size),)]
    found += [split(size, low) for low in LOW_ENDS if size > low]
    return found


def split(size: int, low: int) -> tuple[Run, ...]:
    """The layout of a RAM file of ``size`` bytes with ``low`` bytes below the hole."""
    return (Run(0, 0, low), Run(FOUR_GIB, low, size - low))


def best(size: int, reader: Callable[[tuple[Run, ...]], MemoryReader]) -> tuple[Run, ...] | None:
    """The layout in which a kernel's page tables make most sense, going by the trampoline in the first MiB.

    Physical KASLR may put the kernel above the hole, then only the right layout has it at all; or below, then
    only its page tables tell.  ``reader`` reads the file with a layout.  None if no layout has a kernel.  A
    few ms.
    """
    fits = [
        (found.bad, -found.good, order, runs)
        for order, runs in enumerate(layouts(size))
        for memory in (reader(runs),)
        for place in locate(memory)
        for found in (fit(memory, place.dtb, place.la57),)
    ]
    return min(fits)[3] if fits else None


def fit(memory: MemoryReader, dtb: int, la57: bool) -> Fit:
    """Follow the kernel half of the page tables at ``dtb`` (gpa), down to the tables that map 4 KiB pages."""
    bad = good = 0
    seen: set[int] = set()
    todo = [(dtb, 5 if la57 else 4)]
    while todo and len(seen) < _MAX_TABLES:
        gpa, level = todo.pop()
        if gpa in seen:
            continue
        seen.add(gpa)
        try:
            entries: Sequence[int] = _ENTRIES.unpack(memory.read(gpa, PAGE_SIZE))
        except MemoryFault:
            bad += 1
            continue
        if gpa == dtb:
            entries = entries[256:]
        present = [entry for entry in entries if entry & _PRESENT]
        # The lowest level names pages, with whatever flags; all others name tables, or are large.
        if level > 1 and any(entry & _RESERVED and not entry & _LARGE for entry in present):
            bad += 1
            continue
        good += bool(present)
        if level > 1:
            todo += [
                (entry & _ADDRESS, level - 1) for entry in present if not (entry & _LARGE and level <= 3)
            ]
    return Fit(bad, good)


def describe(runs: Sequence[Run]) -> str | None:
    """What to tell the user of a layout; None for the plain one."""
    if len(runs) < 2:
        return None
    low, high = runs
    return (
        f"this is a RAM file: from offset {high.offset:#x} on it holds what the guest has at {high.start:#x} "
        f"(the hole below 4 GiB is not in it); read as {low.length >> 20} MiB below and "
        f"{high.length >> 20} MiB above"
    )
