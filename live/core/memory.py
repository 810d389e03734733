"""What a source of guest memory offers, and the kinds of address there are.  Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

GuestPhysical = NewType("GuestPhysical", int)
"""A guest-physical address (gpa), in bytes."""

GuestVirtual = NewType("GuestVirtual", int)
"""A guest-virtual address, canonical, as an unsigned 64-bit number."""

Asid = NewType("Asid", int)
"""The gpa of a process's top-level page table; from CR3: without PCID, PTI and no-flush bits."""

PAGE_SIZE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of guest RAM without holes: ``start`` (gpa, bytes) and ``length`` (bytes)."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """First gpa behind the segment."""
        return self.start + self.length


class MemoryReader(Protocol):
    """Guest-physical memory.  Reading never stops, changes or slows the guest.

    A reader that has to stop it has more: ``refresh()``, up to which what was read is not read again;
    ``rest()``, seconds for which the guest is to be left alone now, for what was read since the last call;
    and ``poll_only``, a sentence that says why no traps can be had with it.
    """

    @property
    def segments(self) -> Sequence[Segment]:
        """Guest RAM, ascending by gpa, not overlapping."""

    @property
    def flat(self) -> memoryview | None:
        """All guest-physical memory as one read-only view, indexed by gpa, without a copy.

        Holes between segments read as zeros.  None where the source cannot be mapped; then
        only `read` works.  Whoever walks kernel structures uses it to unpack in place.
        """

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        """Exactly ``length`` bytes from ``gpa``; zero-copy where the source allows.

        Raises `MemoryFault` with the first address that is not in guest RAM.
        """
