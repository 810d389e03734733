"""A guest's memory that cannot be read, here and there, now and then."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from live.core.errors import GuestGone, MemoryFault
from live.core.hypervisor import Guest, GuestInfo, Notices, Pauses, RegisterReader, TrapOffer, UnplacedRam
from live.core.memory import PAGE_SIZE, MemoryReader, Segment


@dataclass(slots=True)
class Faults:
    """Which reads fail; may be changed at any time."""

    pages: Container[int] = ()
    """Numbers of pages (gpa / 4096) that cannot be read."""
    period: int = 0
    """Every so many-th read fails, wherever it is; 0: none."""
    after: int | None = None
    """From this read on, counted from 0, all of them fail."""
    gone: bool = False
    """The hypervisor has ended: every read raises `GuestGone`."""
    reads: int = 0
    """So many were tried."""

    def check(self, gpa: int, length: int) -> None:
        """Raise what the next read, of this place, is to raise."""
        number, self.reads = self.reads, self.reads + 1
        if self.gone:
            raise GuestGone("The guest has ended (an injected fault); start it to watch again.")
        if self.after is not None and number >= self.after:
            raise MemoryFault(gpa, "an injected fault, as everywhere from now on")
        if self.period and number % self.period == self.period - 1:
            raise MemoryFault(gpa, "an injected fault, at this read only")
        if self.pages != ():
            for page in range(gpa // PAGE_SIZE, (gpa + max(length, 1) - 1) // PAGE_SIZE + 1):
                if page in self.pages:
                    raise MemoryFault(max(gpa, page * PAGE_SIZE), "an injected fault, at this page")


class FaultyMemory:
    """A `MemoryReader` over another one; it is never ``flat``, so that every read comes by here."""

    flat: memoryview | None = None

    def __init__(self, reader: MemoryReader, faults: Faults) -> None:
        """``faults`` stays the caller's, who may change it."""
        self._reader, self._faults = reader, faults
        self.description = f"{reader.description}, with injected faults"

    @property
    def segments(self) -> Sequence[Segment]:
        """Those of the reader below."""
        return self._reader.segments

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        """See `live.core.memory.MemoryReader.read`."""
        end = self.segments[-1].end if self.segments else 0
        self._faults.check(gpa, min(length, max(0, end - gpa)))  # what is behind RAM fails anyway
        return self._reader.read(gpa, length)

    def populated(self) -> Sequence[Segment]:
        """Those of the reader below."""
        return self._reader.populated()

    def refresh(self) -> None:
        """That of the reader below."""
        self._reader.refresh()

    def rest(self) -> float:
        """That of the reader below."""
        return self._reader.rest()


class FaultyGuest:
    """A guest over another one, with `FaultyMemory`; it owns the other one."""

    def __init__(self, guest: Guest, faults: Faults) -> None:
        """``faults`` stays the caller's, who may change it."""
        self._guest, self.faults = guest, faults

    @property
    def info(self) -> GuestInfo:
        """That of the guest below, as everything here but `memory`."""
        return self._guest.info

    @property
    def notes(self) -> Sequence[str]:
        """See `live.core.hypervisor.Guest.notes`."""
        return self._guest.notes

    @property
    def memory(self) -> MemoryReader:
        """With faults; anew each time, because the guest's own may be placed anew."""
        return FaultyMemory(self._guest.memory, self.faults)

    @property
    def registers(self) -> RegisterReader | None:
        """See `live.core.hypervisor.Guest.registers`."""
        return self._guest.registers

    @property
    def pauses(self) -> Pauses | None:
        """See `live.core.hypervisor.Guest.pauses`."""
        return self._guest.pauses

    @property
    def notices(self) -> Notices | None:
        """See `live.core.hypervisor.Guest.notices`."""
        return self._guest.notices

    @property
    def unplaced(self) -> UnplacedRam | None:
        """See `live.core.hypervisor.Guest.unplaced`; without faults."""
        return self._guest.unplaced

    @property
    def offers(self) -> Sequence[TrapOffer]:
        """See `live.core.hypervisor.Guest.offers`."""
        return self._guest.offers

    def alive(self) -> bool:
        """See `live.core.hypervisor.Guest.alive`."""
        return self._guest.alive()

    def gone(self) -> GuestGone:
        """See `live.core.hypervisor.Guest.gone`."""
        return self._guest.gone()

    def keep_memory_only(self) -> None:
        """See `live.core.hypervisor.Guest.keep_memory_only`."""
        self._guest.keep_memory_only()

    def close(self) -> None:
        """Close the guest below."""
        self._guest.close()
