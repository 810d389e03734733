"""Reading guest RAM: this process plays QEMU."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from live.core.errors import GuestGone, MemoryFault, TargetError
from live.core.memory import Segment
from live.hypervisors.qemu.memory import host as memory
from live.hypervisors.qemu.memory.host import MappedMemory, ProcessMemory, open_memory

LOW, HIGH = 0x200000, 0x100000
HIGH_AT = 0x1_0000_0000


class FakeMonitor:
    """Answers for a guest whose RAM is in this process."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.broken = False

    def hmp(self, command: str) -> str:
        if command == "info mtree -f":
            return (
                'FlatView #0\n AS "memory", root: system\n'
                f"  {0:016x}-{LOW - 1:016x} (prio 0, ram): ram0\n"
                f"  {HIGH_AT:016x}-{HIGH_AT + HIGH - 1:016x} (prio 0, ram): ram0 @{LOW:016x}\n"
            )
        if command == "info memdev":
            return "memory backend: ram0\n"
        gpa = int(command.split()[1], 16)
        offset = gpa if gpa < LOW else LOW + gpa - HIGH_AT
        address = self.base + offset + (gpa == LOW - 1 and self.broken)
        return f"Host virtual address for {gpa:#x} (ram0) is {address:#x}"


@pytest.fixture(params=["shared", "private"])
def ram(request: pytest.FixtureRequest) -> Iterator[mmap.mmap]:
    # QEMU keeps its descriptor, too; it is how an unlinked file is found.
    descriptor = os.memfd_create("guest-ram")
    os.ftruncate(descriptor, LOW + HIGH)
    flags = mmap.MAP_SHARED if request.param == "shared" else mmap.MAP_PRIVATE
    mapped = mmap.mmap(descriptor, LOW + HIGH, flags=flags)
    mapped[0x1000:0x1004] = b"low!"
    mapped[LOW : LOW + 5] = b"high!"
    yield mapped
    mapped.close()
    os.close(descriptor)


def attach(ram: mmap.mmap, **options: bool) -> MappedMemory | ProcessMemory:
    return open_memory(FakeMonitor(memory._address_of(memoryview(ram))), os.getpid(), **options)


def test_contract(ram: mmap.mmap) -> None:
    reader = attach(ram)
    assert reader.segments == (Segment(start=0, length=LOW), Segment(start=HIGH_AT, length=HIGH))
    assert bytes(reader.read(0x1000, 4)) == b"low!"
    assert bytes(reader.read(HIGH_AT, 5)) == b"high!"
    assert bytes(reader.read(LOW - 2, 2)) == b"\0\0"
    assert len(reader.read(0, LOW)) == LOW
    for gpa, length, first_bad in (
        (LOW - 2, 3, LOW),
        (LOW, 1, LOW),
        (HIGH_AT - 1, 2, HIGH_AT - 1),
        (HIGH_AT + HIGH, 1, HIGH_AT + HIGH),
    ):
        with pytest.raises(MemoryFault) as caught:
            reader.read(gpa, length)
        assert caught.value.address == first_bad
    ram[0x1000:0x1004] = b"LOW?"
    assert bytes(reader.read(0x1000, 4)) == b"LOW?"
    assert reader.hva(HIGH_AT + 1) - reader.hva(0) == LOW + 1
    reader.close()
    reader.close()
    with pytest.raises(GuestGone):
        reader.read(0x1000, 4)


def test_flat_is_the_whole_space_with_holes_of_zeros() -> None:
    descriptor = os.memfd_create("guest-ram")
    os.ftruncate(descriptor, LOW + HIGH)
    with mmap.mmap(descriptor, LOW + HIGH) as ram:
        ram[LOW : LOW + 5] = b"high!"
        reader = attach(ram)
        assert isinstance(reader, MappedMemory)
        assert reader.description == "mapped from shared memory /memfd:guest-ram, no copies"
        assert reader.flat is not None
        assert (len(reader.flat), reader.flat.readonly) == (HIGH_AT + HIGH, True)
        assert bytes(reader.flat[HIGH_AT : HIGH_AT + 5]) == b"high!"
        assert bytes(reader.flat[HIGH_AT - 4 : HIGH_AT]) == b"\0\0\0\0"
        assert reader.populated() == (Segment(start=HIGH_AT, length=mmap.PAGESIZE),)
        view = reader.flat[HIGH_AT : HIGH_AT + 5]
        reader.close()  # a view that is in use stays valid
        assert bytes(view) == b"high!"
        copied = attach(ram, allow_mapping=False)
        assert isinstance(copied, ProcessMemory)
        assert copied.flat is None
        copied.close()
    os.close(descriptor)


def test_no_descriptor_is_left() -> None:
    descriptor = os.memfd_create("guest-ram")
    os.ftruncate(descriptor, LOW + HIGH)
    with mmap.mmap(descriptor, LOW + HIGH) as ram:
        before = os.listdir("/proc/self/fd")
        for mapping in (True, False):
            attach(ram, allow_mapping=mapping).close()
        assert os.listdir("/proc/self/fd") == before
    os.close(descriptor)


def test_ram_in_pieces_is_refused() -> None:
    with mmap.mmap(-1, LOW + HIGH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        monitor = FakeMonitor(memory._address_of(memoryview(ram)))
        monitor.broken = True
        with pytest.raises(TargetError, match="in one piece; report it"):
            open_memory(monitor, os.getpid())


def test_a_process_that_is_gone() -> None:
    with pytest.raises(GuestGone, match="has ended; start the guest again"):
        open_memory(FakeMonitor(0x10000), 0x3FFFFF)
