"""RAM that is not the physical address space: what lies above the PCI hole directly follows what lies below.

Theory of operation
-------------------
A PC has a hole below 4 GiB for devices.  RAM that does not fit under it goes on at gpa 4 GiB.  A file that
*is* the RAM (`memory-backend-file`, a hypervisor's own memory file), and RAM as it lies in a VMM's process,
have no hole: from the offset where low RAM ends, gpa is offset + 4 GiB - end of low RAM.  `pmemsave` of the
whole space, on the other hand, writes the hole out.  Nothing says which of the two it is; the kernel's page
tables do.  Read with the right layout, every table that they name is in RAM and is a table; read with a wrong
one, some are missing and others turn out to be data.

The end of low RAM is chosen by the machine type, so there are few candidates (`LOW_ENDS`).  The plain layout
wins a draw.  A layout is certain if nothing is wrong in it, and tables outside of the kernel's image are
where they should be, above the hole if there is one: a kernel takes the tables of its direct map from the top
of RAM.  (With a wrong layout they may turn out to be empty, in which nothing is wrong.)  If none is certain,
more are looked at:

* *From the kernel.*  The firmware's memory map, of which the kernel keeps a copy (``boot_params``), says how
  much RAM there is from 4 GiB on.  A kernel that was loaded above the hole is found by its page table: the
  trampoline names its gpa, and each end of low RAM puts that at another offset.
* *The other way round.*  A VMM that maps the two parts one after the other, as anonymous memory, has the
  upper one first, because mmap(2) goes downwards.

In a VMM's process, what is taken for RAM may begin too early: mmap(2) puts what is mapped next, a thread's
stack for instance, right below RAM, and in /proc/PID/maps the two are one.  If there is no kernel in any
layout, RAM is looked for some MiB further on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from live.arch.x86_64 import FRAME, LARGE, PRESENT, SOFTWARE
from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, MemoryReader, Run
from symbols.placement import image, leads_to_image, locate, trampoline_tables
from symbols.window import quads

FOUR_GIB = 1 << 32
LOW_ENDS = (0x8000_0000, 0xC000_0000, 0xE000_0000, 0xB000_0000, 0x4000_0000, 0xD000_0000, 0xF000_0000)
"""Ends of low RAM in bytes.

QEMU's hw/i386 (``pc_q35_init``, ``pc_init1``): 2 GiB for q35; 3 GiB for i440fx and microvm; 0xe0000000 for
i440fx and 0xb0000000 for q35 where RAM ends below.  3 GiB: cloud-hypervisor, Firecracker.  0xd0000000:
crosvm, kvmtool, libkrun, older Firecracker.  0xe0000000: VirtualBox.  0xf0000000: Xen.
"""

_MIB = 1 << 20
_MAX_TABLES = 20_000
_MAX_DERIVED = 8
_MAX_BEFORE = 64 * _MIB
"""Bytes that may lie before RAM; a thread's stack has 2 or 8 MiB."""
_ENTRIES = struct.Struct("<512Q")
_E820_ENTRY = struct.Struct("<QQI")
"""struct boot_e820_entry of arch/x86/include/uapi/asm/bootparam.h: addr, size, type."""
_E820_TYPE_RAM = 1
_HIGH_ADDRESS = struct.pack("<Q", FOUR_GIB)

Layout = tuple[Run, ...]
Reader = Callable[[Layout], MemoryReader]


class Fit(NamedTuple):
    """How well page tables can be followed: tables that are missing or no tables, and tables that are."""

    bad: int
    good: int


class _Ranked(NamedTuple):
    """A layout that has a kernel; the least is the best."""

    bad: int
    fewer_good: int
    order: int
    runs: Layout
    certain: bool


def layouts(size: int) -> list[Layout]:
    """How ``size`` bytes of RAM may be laid out, the plain layout first."""
    return [(Run(0, 0, size),), *(split(size, low) for low in LOW_ENDS if size > low)]


def split(size: int, low: int) -> Layout:
    """The layout of ``size`` bytes of RAM with ``low`` bytes below the hole."""
    return (Run(0, 0, low), Run(FOUR_GIB, low, size - low))


def best(size: int, reader: Reader, *, from_start: bool = False) -> Layout | None:
    """The layout in which a kernel's page tables make most sense, going by the trampoline in the first MiB.

    ``size``: bytes of RAM; ``reader`` reads them with a layout.  ``from_start``: RAM begins at offset 0, its
    lower part first, as in a file; otherwise a layout may leave some of it out, or begin elsewhere.  None if
    no layout has a kernel.  Takes a few ms, and a tenth of a second if no layout is certain or has a kernel.

    Physical KASLR may put the kernel above the hole, then only the right layout has it at all; or below, then
    only its page tables tell.
    """
    found = _best(size, reader, from_start)
    if found is not None or from_start:
        return found
    for before in range(size % _MIB or _MIB, min(_MAX_BEFORE, size), _MIB):

        def moved(runs: Layout, before: int = before) -> MemoryReader:
            return reader(_moved(runs, before))

        rest = size - before
        if any(trampoline_tables(moved((Run(0, 0, rest),)))):
            found = _best(rest, moved, from_start)
            if found is not None:
                return _moved(found, before)
    return None


def derived_low_ends(size: int, reader: Reader) -> list[int]:
    """Ends of low RAM, in bytes, that follow from what the kernel in ``size`` bytes of RAM says; a few."""
    plain = reader((Run(0, 0, size),))
    found = dict.fromkeys(islice(_by_memory_map(size, plain), _MAX_DERIVED))
    found |= dict.fromkeys(islice(_by_page_table(size, plain), _MAX_DERIVED))
    return list(found)


def fit(memory: MemoryReader, dtb: int, la57: bool) -> Fit:
    """Follow the kernel half of the page tables at ``dtb`` (gpa), down to the tables that map 4 KiB pages."""
    bad, good = _follow(memory, dtb, la57)
    return Fit(bad, len(good))


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


def _follow(memory: MemoryReader, dtb: int, la57: bool) -> tuple[int, list[int]]:
    """(what is named as a table and is none, gpas of the tables that are not empty)."""
    bad, good = 0, []
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
        present = [entry for entry in entries if entry & PRESENT]
        # The lowest level names pages, with whatever flags; all others name tables, or are large.
        if level > 1 and any(entry & SOFTWARE and not entry & LARGE for entry in present):
            bad += 1
            continue
        if present:
            good.append(gpa)
        if level > 1:
            todo += [(entry & FRAME, level - 1) for entry in present if not (entry & LARGE and level <= 3)]
    return bad, good


def _best(size: int, reader: Reader, from_start: bool) -> Layout | None:
    found = list(_ranked(layouts(size), reader))
    if not any(one.certain for one in found):
        derived = [split(size, low) for low in derived_low_ends(size, reader)]
        found += _ranked(derived, reader, len(LOW_ENDS) + 1)
        # What lies before RAM would pass for its upper part, so here it takes more than a kernel.
        turned = [_turned(size, low) for low in LOW_ENDS if size > low and not from_start]
        found += [one for one in _ranked(turned, reader, len(found)) if one.certain]
    return min(found).runs if found else None


def _ranked(candidates: Iterable[Layout], reader: Reader, first: int = 0) -> Iterator[_Ranked]:
    """Those of the layouts that have a kernel; ``first``: the number of the first one."""
    for order, runs in enumerate(candidates, first):
        memory = reader(runs)
        for place in locate(memory):
            bad, good = _follow(memory, place.dtb, place.la57)
            least = FOUR_GIB if len(runs) > 1 else 0
            certain = not bad and any(gpa >= least and not place.text <= gpa < place.end for gpa in good)
            yield _Ranked(bad, -len(good), order, runs, certain)


def _turned(size: int, low: int) -> Layout:
    """The upper part of RAM comes first."""
    return (Run(0, size - low, low), Run(FOUR_GIB, 0, size - low))


def _moved(runs: Layout, before: int) -> Layout:
    """The layout, ``before`` bytes further on."""
    return tuple(Run(run.start, run.offset + before, run.length) for run in runs)


def _by_memory_map(size: int, plain: MemoryReader) -> Iterator[int]:
    """By the size of the RAM from 4 GiB on, as the memory map in a kernel that lies below the hole says."""
    for place in locate(plain):
        data = bytes(image(plain, place))
        at = data.find(_HIGH_ADDRESS)
        while 0 <= at <= len(data) - _E820_ENTRY.size:
            _, length, kind = _E820_ENTRY.unpack_from(data, at)
            low = size - length
            if kind == _E820_TYPE_RAM and 0 < low < min(size, FOUR_GIB) and low % _MIB == 0:
                yield low
            at = data.find(_HIGH_ADDRESS, at + 1)


def _by_page_table(size: int, plain: MemoryReader) -> Iterator[int]:
    """By the place of the page table of a kernel that lies above the hole."""
    for gpa in dict.fromkeys(trampoline_tables(plain)):
        for low in range(_MIB, min(size, FOUR_GIB), _MIB):
            offset = gpa - FOUR_GIB + low
            if low <= offset <= size - PAGE_SIZE and leads_to_image(quads(plain.read(offset, PAGE_SIZE))):
                yield low
