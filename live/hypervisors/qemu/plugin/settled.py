"""The table of settled asids in the memory that we share with the plugin: wire.h has its layout.

A hash table with linear probing that only we write, a quadword at a time, while vCPUs read it.  So what is
added is in force at once, and costs the guest nothing.  While the table is made anew, what is in it may be
taken for unsettled for a moment: a trap too many, never one too few.
"""

from __future__ import annotations

import struct
from collections.abc import Set as AbstractSet

from live.core.memory import Asid

BITS, PROBES = 14, 64
SLOTS = 1 << BITS
EMPTY, MARK, GONE = 0, 1, 2
MULTIPLIER = 0x9E37_79B9_7F4A_7C15
"""Fibonacci hashing of the page number."""
MOST = SLOTS // 4
"""Asids that are kept; the others are unsettled, which is safe."""
_U64 = struct.Struct("<Q")
_MASK = (1 << 64) - 1


def first_slot(asid: int) -> int:
    """Where the search for an asid begins."""
    return ((asid >> 12) * MULTIPLIER & _MASK) >> (64 - BITS)


class SettledTable:
    """The asids in the table at byte ``at`` of ``view``, which is all zeros."""

    def __init__(self, view: memoryview, at: int) -> None:
        """Nothing is settled."""
        self._view, self._at = view, at
        self._places: dict[Asid, int] = {}
        self._free = [True] * SLOTS
        self._gone = 0

    def __contains__(self, asid: object) -> bool:
        """Whether the plugin finds it."""
        return asid in self._places

    def replace(self, asids: AbstractSet[Asid]) -> None:
        """These are settled, and no others, up to `MOST`."""
        gone = self._places.keys() - asids
        for asid in gone:
            slot = self._places.pop(asid)
            self._put(slot, GONE)
            self._free[slot] = True
            self._gone += 1
        if self._gone > MOST:
            self._clear()
        for asid in asids - self._places.keys():
            self._add(asid)

    def _clear(self) -> None:
        self._view[self._at : self._at + 8 * SLOTS] = bytes(8 * SLOTS)
        self._places.clear()
        self._free = [True] * SLOTS
        self._gone = 0

    def _add(self, asid: Asid) -> None:
        if len(self._places) >= MOST:
            return
        first = first_slot(asid)
        for probe in range(PROBES):
            slot = (first + probe) % SLOTS
            if self._free[slot]:
                self._free[slot] = False
                self._places[asid] = slot
                self._put(slot, asid | MARK)
                return

    def _put(self, slot: int, value: int) -> None:
        _U64.pack_into(self._view, self._at + 8 * slot, value)
