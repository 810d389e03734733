"""Guest memory of a machine in this process, copied out by PANDA.

Theory of operation
-------------------
``panda_physical_memory_rw`` (panda/include/panda/common.h) checks the first address and copies what follows
it in QEMU's memory, however long: what crosses the end of RAM would read QEMU's own.  So a read is checked
against the layout of RAM first.

A PC (hw/i386/pc.c, pc_piix.c) has RAM from 0 up to a split below 4 GiB, and the rest of it from 4 GiB on.
Where the split is, is asked of QEMU: up to it, and only there, a gpa is at the same offset of RAM.  What lies
between 640 KiB and 1 MiB is graphics and ROM, or RAM that firmware alone uses; it counts as a hole.
"""

from __future__ import annotations

from live.core.errors import MemoryFault, TargetError
from live.core.memory import PAGE_SIZE, InPlace, Segment
from live.hypervisors.host.segments import Segments
from live.hypervisors.panda.api import Panda
from live.hypervisors.panda.machine import Machine

LOW, HIGH = 0xA0000, 0x100000
"""The hole below 1 MiB."""
FOUR_GIB = 1 << 32
_MIB = 1 << 20
_PIECE = 16 << 20
"""Bytes of one copy."""


class PandaMemory(Segments, InPlace):
    """A `live.core.memory.MemoryReader`.  Safe to use from several threads."""

    description = "copied out of PANDA, in this process"
    flat: memoryview | None = None

    def __init__(self, machine: Machine) -> None:
        """Waits for the machine.  Raises `TargetError` (no PC, or the run does not begin), `GuestGone`."""
        machine.require()
        super().__init__(layout(machine.panda))
        self._machine = machine

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`."""
        if self._machine.over():
            raise self._machine.gone()
        self.find(gpa, length)
        if length <= _PIECE:
            return self._copy(gpa, length)
        end = gpa + length
        return b"".join(self._copy(at, min(_PIECE, end - at)) for at in range(gpa, end, _PIECE))

    def _copy(self, gpa: int, length: int) -> bytes:
        if length == 0:
            return b""
        try:
            return bytes(self._machine.panda.physical_memory_read(gpa, length))
        except ValueError as error:
            raise MemoryFault(gpa, f"PANDA cannot read it ({error})") from error


def layout(panda: Panda) -> list[Segment]:
    """Where a PC has its RAM.  Raises `TargetError` if the machine is laid out in another way."""
    size = int(panda.libpanda.ram_size)
    base = _offset(panda, 0)
    if base is None or size <= HIGH or not _there(panda, base, HIGH, HIGH):
        raise TargetError(
            f"PANDA's machine has no RAM where a PC has it ({size} bytes); use its default machine."
        )
    split = _split(panda, base, size)
    segments = [Segment(start=0, length=LOW), Segment(start=HIGH, length=split - HIGH)]
    above = size - split
    if above:
        last = above - PAGE_SIZE
        if not (_there(panda, base, FOUR_GIB, split) and _there(panda, base, FOUR_GIB + last, split + last)):
            raise TargetError(
                f"PANDA's machine has {size} bytes of RAM, of which only {split} are where a PC has them; "
                "use its default machine."
            )
        segments.append(Segment(start=FOUR_GIB, length=above))
    return segments


def _split(panda: Panda, base: int, size: int) -> int:
    """The first gpa, in whole MiB, that is not at its own offset of RAM."""
    most = min(size, FOUR_GIB)
    if _there(panda, base, most - PAGE_SIZE, most - PAGE_SIZE):
        return most
    known, beyond = 1, most // _MIB
    while beyond - known > 1:
        middle = (known + beyond) // 2
        if _there(panda, base, middle * _MIB, middle * _MIB):
            known = middle
        else:
            beyond = middle
    return beyond * _MIB


def _there(panda: Panda, base: int, gpa: int, offset: int) -> bool:
    return _offset(panda, gpa) == base + offset


def _offset(panda: Panda, gpa: int) -> int | None:
    try:
        return int(panda.address_to_ram_offset(gpa, False))
    except ValueError:
        return None
