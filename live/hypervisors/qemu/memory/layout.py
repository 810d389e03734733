"""Where a guest's RAM lies: guest-physical address -> RAM block -> QEMU's own address space.  Pure parsing.

Theory of operation
-------------------
``info mtree -f`` prints each flat view: the memory map as a vCPU sees it, without holes filled in.  The view
of the address space ``memory`` names every range of RAM with the block behind it.  Which blocks are the
guest's main memory (and not video memory, firmware or option ROMs) is told by elimination: the block at gpa
0, and every block that a memory backend made (``info memdev``: NUMA nodes, DIMMs).

``rom`` ranges of those blocks belong to them too: below 1 MiB the chipset shadows firmware in RAM that is
write-protected.  ``gpa2hva`` then gives the address in QEMU's process for the start and the end of each
range.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_RANGE = re.compile(
    r"^ *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?(ram|rom|ramd|romd|i/o)\): "
    r"(.*?)(?: @([0-9a-f]{16}))?(?: KVM)?$"
)
_AS = re.compile(r'^ *AS "([^"]*)"')
_HVA = re.compile(r"is (0x[0-9a-f]+)")
_MEMDEV = re.compile(r"^memory backend: (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RamRange:
    """A range of guest RAM within one block."""

    start: int
    """gpa, bytes."""
    length: int
    block: str
    """Name of the RAM block, without its object path."""
    offset: int
    """In the block, bytes."""


def parse_flat_view(text: str, space: str = "memory") -> list[RamRange]:
    """RAM and ROM ranges of the flat view that serves the address space ``space``, ascending."""
    ranges: list[RamRange] = []
    wanted = False
    for line in text.splitlines():
        if line.startswith("FlatView"):
            wanted = False
        elif found := _AS.match(line):
            wanted = wanted or found[1] == space
        elif wanted and (match := _RANGE.match(line)) and match[3] in ("ram", "rom"):
            start, last = int(match[1], 16), int(match[2], 16)
            ranges.append(
                RamRange(
                    start=start,
                    length=last - start + 1,
                    block=match[4].rpartition("/")[2],
                    offset=int(match[5] or "0", 16),
                )
            )
    return sorted(ranges, key=lambda one: one.start)


def parse_backends(text: str) -> set[str]:
    """Names of the memory backends in ``info memdev``."""
    return {name.rpartition("/")[2] for name in _MEMDEV.findall(text)}


def main_memory(ranges: Iterable[RamRange], backends: set[str]) -> list[RamRange]:
    """The ranges of main memory among all: the block at gpa 0 and those of memory backends, merged."""
    ranges = list(ranges)
    names = {one.block for one in ranges if one.start == 0} | backends
    merged: list[RamRange] = []
    for one in ranges:
        if one.block not in names:
            continue
        last = merged[-1] if merged else None
        if last and last.block == one.block and _follows(last, one):
            merged[-1] = RamRange(
                start=last.start, length=last.length + one.length, block=last.block, offset=last.offset
            )
        else:
            merged.append(one)
    return merged


def _follows(one: RamRange, other: RamRange) -> bool:
    return other.start - one.start == one.length == other.offset - one.offset


def parse_hva(text: str) -> int | None:
    """The host virtual address in the answer of ``gpa2hva``, or None if there is none."""
    match = _HVA.search(text)
    return int(match[1], 16) if match else None
