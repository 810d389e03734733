"""x86-64 page tables, 4 and 5 levels, read from guest-physical memory (Intel SDM vol. 3A, 4.5)."""

from __future__ import annotations

import struct

from live.core.errors import MemoryFault
from live.core.memory import GuestPhysical, MemoryReader

_ENTRY = struct.Struct("<Q")
_PRESENT = 1
_LARGE = 1 << 7
_FRAME = 0x000F_FFFF_FFFF_F000
# A page that is not present may still hold its frame: PROT_NONE keeps bit 8 (_PAGE_PROTNONE).
# Linux inverts the frame bits of such entries (L1TF), so they are treated as absent.


class PageTable:
    """One address space: ``dtb`` is the gpa of its top-level table, ``levels`` 4 or 5.

    Walks the tables anew for every page: a live guest changes them at will.
    """

    __slots__ = ("_memory", "_shifts", "dtb")

    def __init__(self, memory: MemoryReader, dtb: int, levels: int) -> None:
        """Nothing is read until an address is translated."""
        self._memory = memory
        self.dtb = dtb
        self._shifts = (48, 39, 30, 21, 12) if levels == 5 else (39, 30, 21, 12)

    def gpa(self, address: int) -> GuestPhysical:
        """The gpa behind a guest-virtual address; `MemoryFault` if it is not present."""
        return GuestPhysical(self._page(address)[0])

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes from a guest-virtual address, across pages; `MemoryFault` at the first gap."""
        parts = []
        while length > 0:
            gpa, left = self._page(address)
            take = min(left, length)
            parts.append(bytes(self._memory.read(gpa, take)))
            address += take
            length -= take
        return b"".join(parts)

    def read_until_fault(self, address: int, length: int) -> bytes:
        """Like `read`, but what is there up to the first page that is not present."""
        parts = []
        try:
            while length > 0:
                gpa, left = self._page(address)
                take = min(left, length)
                parts.append(bytes(self._memory.read(gpa, take)))
                address += take
                length -= take
        except MemoryFault:
            pass
        return b"".join(parts)

    def _page(self, address: int) -> tuple[int, int]:
        """(gpa of the address, bytes left in its page)."""
        table = self.dtb
        for shift in self._shifts:
            try:
                (entry,) = _ENTRY.unpack(self._memory.read(table + ((address >> shift) & 0x1FF) * 8, 8))
            except MemoryFault as fault:
                raise MemoryFault(address, "page table is not in guest RAM", "virtual") from fault
            if not entry & _PRESENT:
                raise MemoryFault(address, "page not present", "virtual")
            if shift == 12 or (shift <= 30 and entry & _LARGE):
                size = 1 << shift
                offset = address & (size - 1)
                return (entry & _FRAME & ~(size - 1)) + offset, size - offset
            table = entry & _FRAME
        raise MemoryFault(address, "no page table level left", "virtual")  # unreachable: 12 is last
