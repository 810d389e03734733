"""What a source of guest memory offers, and the kinds of address there are.  Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NewType, Protocol

GuestPhysical = NewType("GuestPhysical", int)
"""A guest-physical address (gpa), in bytes."""

GuestVirtual = NewType("GuestVirtual", int)
"""A guest-virtual address, canonical, as an unsigned 64-bit number."""

Asid = NewType("Asid", int)
"""What tells one address space from another: the gpa of its top-level page table."""

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


class Run(NamedTuple):
    """``length`` bytes of RAM from gpa ``start``, which lie at ``offset`` of a file or of a VMM's RAM."""

    start: int
    offset: int
    length: int


class MemoryReader(Protocol):
    """Guest-physical memory.

    Reading changes nothing in the guest.  What it costs the guest is said by `rest`: most readers cost it
    nothing; one that has to stop the guest for a read asks for time in which it is left alone.
    """

    @property
    def description(self) -> str:
        """How memory is read, as a phrase for the output: ``"mapped from ..., no copies"``."""

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

        Raises `MemoryFault` with the first address that is not in guest RAM, `GuestGone` when the
        hypervisor has ended.
        """

    def populated(self) -> Sequence[Segment]:
        """The parts of RAM that may hold something, ascending; everything else is zeros.

        Reading the rest may make the host allocate it.
        """

    def refresh(self) -> None:
        """What is read from now on is the guest's memory as it is from now on.

        A reader may give what it has read once for every later read of the same place, up to here.
        """

    def rest(self) -> float:
        """Seconds for which the guest is to be left alone now, for what was read since the last call."""


class InPlace:
    """The part of a `MemoryReader` that is the same for all that read in place and cost the guest nothing."""

    segments: Sequence[Segment]

    def populated(self) -> Sequence[Segment]:
        """All of RAM: which parts were touched is not known."""
        return self.segments

    def refresh(self) -> None:
        """Nothing is kept."""

    def rest(self) -> float:
        """The guest is not disturbed."""
        return 0.0


def merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Runs ascending by gpa; neighbours joined; empty ones, and what overlaps an earlier one, left out."""
    found: list[Run] = []
    for run in sorted(runs):
        if run.length <= 0:
            continue
        if found:
            start, offset, length = found[-1]
            if run.start < start + length:
                continue
            if run.start == start + length and run.offset == offset + length:
                found[-1] = Run(start, offset, length + run.length)
                continue
        found.append(run)
    return tuple(found)
