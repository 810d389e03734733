"""A toy hypervisor: its guests are bytearrays of this process, with memory and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from live.core.errors import GuestGone, MemoryFault, NoTarget
from live.core.hypervisor import Guest, GuestInfo, TrapOffer
from live.core.memory import InPlace, Segment


class ToyMemory(InPlace):
    """A `live.core.memory.MemoryReader`: one segment from gpa 0."""

    description = "a bytearray"

    def __init__(self, ram: bytearray) -> None:
        self._ram: bytearray | None = ram
        self.segments = (Segment(start=0, length=len(ram)),)
        self.flat: memoryview | None = memoryview(ram).toreadonly()

    def read(self, gpa: int, length: int) -> bytes:
        if self._ram is None:
            raise GuestGone("The toy was closed; attach to it again.")
        if not 0 <= gpa < len(self._ram):
            raise MemoryFault(gpa)
        if gpa + length > len(self._ram):
            raise MemoryFault(len(self._ram))
        return bytes(self._ram[gpa : gpa + length])

    def close(self) -> None:
        self._ram = self.flat = None


class ToyGuest:
    """A `live.core.hypervisor.Guest`: what it lacks, it says by None."""

    registers = pauses = notices = unplaced = None

    def __init__(self, name: str, ram: bytearray, offers: Sequence[TrapOffer] = ()) -> None:
        self.info = GuestInfo(name=name, machine="toy", memory=len(ram))
        self.notes: Sequence[str] = ()
        self.memory = ToyMemory(ram)
        self.offers = offers
        self._closed = False

    def alive(self) -> bool:
        return not self._closed

    def gone(self) -> GuestGone:
        return GuestGone(f"The toy {self.info.name} has ended; start it to watch again.")

    def keep_memory_only(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True
        self.memory.close()


class ToyHypervisor:
    """A `live.core.hypervisor.Hypervisor`."""

    scheme = "toy"
    title = "toys"

    def __init__(self) -> None:
        self.running: dict[str, bytearray] = {}

    def guests(self) -> Sequence[GuestInfo]:
        return [ToyGuest(name, ram).info for name, ram in self.running.items()]

    def attach(self, target: str | None) -> Guest:
        names = [name for name in self.running if target in (None, name)]
        if len(names) != 1:
            raise NoTarget(f"There is no toy {target}; there are: {', '.join(self.running)}.")
        return ToyGuest(names[0], self.running[names[0]])


TOYS = ToyHypervisor()
