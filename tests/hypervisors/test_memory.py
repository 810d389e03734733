"""Reading guest RAM in a process of this host: this one plays QEMU."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from live.core.errors import GuestGone, MemoryFault, TargetError
from live.core.memory import MemoryReader, Segment
from live.hypervisors.host.maps import mapping_at, parse_maps, shared_file_at
from live.hypervisors.host.memory import MappedMemory, ProcessMemory
from live.hypervisors.host.space import address_of
from live.hypervisors.qemu.memory.host import open_memory
from live.testing import MemoryContract

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
    return open_memory(FakeMonitor(address_of(memoryview(ram))), os.getpid(), **options)


class TestContract(MemoryContract):
    @pytest.fixture
    def memory(self, ram: mmap.mmap) -> Iterator[MemoryReader]:
        reader = attach(ram)
        yield reader
        reader.close()


def test_both_readers_give_what_ram_holds(ram: mmap.mmap) -> None:
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
        monitor = FakeMonitor(address_of(memoryview(ram)))
        monitor.broken = True
        with pytest.raises(TargetError, match="in one piece; report it"):
            open_memory(monitor, os.getpid())


def test_a_process_that_is_gone() -> None:
    with pytest.raises(GuestGone, match="has ended; start the guest again"):
        open_memory(FakeMonitor(0x10000), 0x3FFFFF)


def test_maps() -> None:
    text = (
        "7f0000000000-7f0040000000 rw-s 00001000 00:01 2057 /memfd:memory-backend-memfd (deleted)\n"
        "7f0050000000-7f0050001000 rw-p 00000000 00:00 0 \n"
    )
    shared, private = parse_maps(text)
    assert (shared.start, shared.end, shared.shared, shared.offset) == (
        0x7F0000000000,
        0x7F0040000000,
        True,
        0x1000,
    )
    assert (shared.device, shared.inode, shared.path) == (
        "00:01",
        2057,
        "/memfd:memory-backend-memfd (deleted)",
    )
    assert (private.shared, private.path) == (False, "")
    assert mapping_at([shared, private], 0x7F003FFFFFFF) is shared
    assert mapping_at([shared, private], 0x7F0040000000) is None


def test_a_shared_file_in_several_mappings() -> None:
    text = (
        "7f0000000000-7f0000100000 rw-s 00000000 00:01 2057 /memfd:ram (deleted)\n"
        "7f0000100000-7f0000200000 rw-s 00100000 00:01 2057 /memfd:ram (deleted)\n"
        "7f0000200000-7f0000300000 rw-s 00900000 00:01 2057 /memfd:ram (deleted)\n"
        "7f0000300000-7f0000400000 rw-p 00000000 00:00 0 \n"
        "no line\n"
    )
    mappings = parse_maps(text)
    base = 0x7F0000000000
    assert shared_file_at(mappings, base, 0x100000) == mappings[0]
    assert shared_file_at(mappings, base + 0x1000, 0x1FF000) == mappings[0]
    assert shared_file_at(mappings, base + 0x1000, 0x200000) is None, "the file does not go on there"
    assert shared_file_at(mappings, base + 0x300000, 0x1000) is None, "private"
    assert shared_file_at(mappings, base - 1, 1) is None, "not mapped"
