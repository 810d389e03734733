"""Which mappings of a process are guest RAM, and where that lies in guest-physical space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from live.core.memory import Run
from live.hypervisors.host.maps import parse_maps
from live.hypervisors.process import ProcessGuest
from live.hypervisors.process.find import Ram, find_ram
from symbols import ram_file
from symbols.cache import Cache
from symbols.guest import find_kernel
from tests.hypervisors.vmm import MIB, Vmm, attach, begin_of, children, write
from tests.symbols.build import Plan, install, link
from tests.symbols.build import Ram as Bytes

BASE = 0x7F00_0000_0000


def line(start: int, mib: float, permissions: str = "rw-p", **file: str | int) -> str:
    """A line of /proc/PID/maps; ``start`` counts in MiB from `BASE`.

    ``file``: its inode, the offset in it in MiB, and its name.
    """
    first = BASE + start * MIB
    place = f"{int(file.get('offset', 0)) * MIB:08x} 00:01 {file.get('inode', 0)}"
    return f"{first:x}-{first + int(mib * MIB):x} {permissions} {place}          {file.get('path', '')}"


def found(*lines: str) -> Ram | None:
    return find_ram(parse_maps("\n".join(lines)))


def pieces(ram: Ram | None) -> list[tuple[int, int, int]]:
    """(start, length, address) in MiB."""
    assert ram is not None
    return [(one.start // MIB, one.length // MIB, (one.hva - BASE) // MIB) for one in ram.pieces]


CH_RAM = "/memfd:ch_ram (deleted)"


def memfd(start: int, mib: int, inode: int = 7, offset: int = 0) -> str:
    """A piece of cloud-hypervisor's RAM."""
    return line(start, mib, "rw-s", inode=inode, offset=offset, path=CH_RAM)


def snapshot(start: int, mib: int, offset: int) -> str:
    """A piece of the RAM of a guest that was restored, as Firecracker does it."""
    return line(start, mib, inode=7, offset=offset, path="/snapshot")


def file(start: int, mib: int, path: str, permissions: str = "rw-s") -> str:
    return line(start, mib, permissions, inode=9, path=path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([line(0, 512), line(600, 64)], [(0, 512, 0)], id="the largest"),
        pytest.param([memfd(0, 512), line(600, 100)], [(0, 512, 0)], id="a memfd"),
        pytest.param([line(0, 512), line(1024, 1024, "rwxp")], [(0, 512, 0)], id="no code"),
        pytest.param(
            [line(0, 512), file(1024, 1024, "/memfd:jit"), file(4096, 1024, "/memfd:jit", "r-xs")],
            [(0, 512, 0)],
            id="no file of a JIT",
        ),
        pytest.param(
            [line(0, 512), file(1024, 16384, "anon_inode:[vfio-device]")], [(0, 512, 0)], id="no device"
        ),
        pytest.param([line(0, 512), file(1024, 1024, "/dev/dri/card0")], [(0, 512, 0)], id="no card"),
        pytest.param([line(0, 512), line(1024, 1024, path="[heap]")], [(0, 512, 0)], id="no heap"),
        pytest.param([line(0, 512, path="[anon:guest]")], [(0, 512, 0)], id="a name"),
        pytest.param([file(0, 512, "/dev/zero (deleted)")], [(0, 512, 0)], id="shared anonymous"),
        pytest.param([file(0, 512, "/dev/hugepages/x")], [(0, 512, 0)], id="huge pages"),
        pytest.param([line(0, 100), line(100, 28), line(128, 384)], [(0, 512, 0)], id="split by madvise"),
        pytest.param([line(0, 0.5), line(1, 512)], [(0, 512, 1)], id="not the neighbour below a hole"),
        pytest.param([memfd(0, 100), memfd(100, 412, offset=100)], [(0, 512, 0)], id="a memfd, split"),
        pytest.param(
            [memfd(0, 512, offset=3072), memfd(1024, 3072)],
            [(0, 3072, 1024), (3072, 512, 0)],
            id="a memfd, in two places",
        ),
        pytest.param(
            [snapshot(0, 512, 3072), snapshot(1024, 3072, 0)],
            [(0, 3072, 1024), (3072, 512, 0)],
            id="a private file, in two places",
        ),
        pytest.param([memfd(0, 512), memfd(1024, 512)], [(0, 512, 0)], id="a memfd, twice"),
        pytest.param(
            [memfd(0, 2048, inode=8), memfd(4096, 512)],
            [(0, 512, 4096), (512, 2048, 0)],
            id="two memfds, as they were made",
        ),
    ],
)
def test_which_mappings_are_ram(lines: list[str], expected: list[tuple[int, int, int]]) -> None:
    assert pieces(found(*lines)) == expected


def test_a_neighbour_that_is_no_whole_number_of_mib_is_left_out() -> None:
    stack = f"{BASE - 8 * MIB + 4096:x}-{BASE:x} rw-p 00000000 00:00 0"
    assert pieces(found(stack, line(0, 512))) == [(0, 512, 0)]


def test_without_room_for_a_guest() -> None:
    assert found() is None
    assert found(line(0, 31)) is None
    assert found(line(0, 4096, "r--p"), line(5000, 4096, "r-xp", inode=9, path="/lib/x"), "nonsense") is None


def test_what_may_be_ram_too_is_said() -> None:
    ram = found(line(0, 2048), line(3000, 1024), line(5000, 64))
    assert ram is not None
    assert (ram.size, len(ram.notes)) == (2048 * MIB, 1)
    assert "1 more mappings that may be RAM of the guest, of 1024 MiB" in ram.notes[0]
    both = found(memfd(0, 2048, inode=8), memfd(4096, 512))
    assert both is not None
    assert "in 2 memory files" in both.notes[0]
    alone = found(line(0, 2048))
    assert alone is not None
    assert alone.notes == ()


def test_maps_of_a_process_with_very_many_mappings() -> None:
    many = [f"{BASE + n * 8192:x}-{BASE + n * 8192 + 4096:x} rw-p 00000000 00:00 0" for n in range(100_000)]
    assert found(*many) is None
    touching = [
        f"{BASE + n * 4096:x}-{BASE + n * 4096 + 4096:x} rw-p 00000000 00:00 0" for n in range(100_000)
    ]
    ram = found(*touching)
    assert ram is not None
    assert ram.size == 100_000 * 4096 // MIB * MIB


@pytest.fixture
def vmm() -> Iterator[Vmm]:
    with children() as start:
        yield start


# A synthetic kernel in such a child: where RAM lies is found out.

HIGH = ram_file.FOUR_GIB


def populate(guest: ProcessGuest, runs: tuple[Run, ...], plan: Plan, memory_map: int = 0) -> None:
    """Install a kernel in RAM that lies so; ``memory_map``: bytes from 4 GiB on that the firmware told of."""
    base = plan.text - 16 * MIB
    part = Bytes(48 * MIB, start=base)
    install(part, Plan(text=plan.text, top_tables=plan.top_tables, trampoline=0) if base else plan)
    if memory_map:
        entry = HIGH.to_bytes(8, "little") + memory_map.to_bytes(8, "little") + b"\1\0\0\0"
        part.write(plan.text + 0x180000, entry)

    def put(gpa: int, data: bytes) -> None:
        for run in runs:
            if run.start <= gpa < run.start + run.length:
                write(guest, run.offset + gpa - run.start, data)

    for at in range(0, len(part.data), 4096):
        if any(page := part.data[at : at + 4096]):
            put(base + at, bytes(page))
    if base:
        put(plan.trampoline + 8 * 511, (plan.gpa(link("level3_kernel_pgt")) | 0x67).to_bytes(8, "little"))


ABOVE = Plan(text=HIGH + 16 * MIB, top_tables=HIGH + MIB)
BELOW = Plan()


@dataclass(frozen=True)
class Case:
    """``before``, ``low``: MiB before RAM, and below the hole."""

    low: int
    before: int = 0
    turned: bool = False


@pytest.mark.parametrize("kind", ["memfd", "anonymous"])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(1024), id="a known machine"),
        pytest.param(Case(1024, turned=True), id="the upper part first"),
        pytest.param(Case(1000), id="an end of low RAM that its page table tells"),
        pytest.param(Case(1000, before=8), id="behind a stack"),
        pytest.param(Case(1024, before=2), id="behind a small stack"),
    ],
)
def test_ram_is_placed(vmm: Vmm, tmp_path: Path, kind: str, case: Case) -> None:
    size, low = 1536 * MIB, case.low * MIB
    with attach(vmm(kind, size + case.before * MIB).pid) as guest:
        skip = begin_of(guest, size)
        runs = (Run(0, skip, low), Run(HIGH, skip + low, size - low))
        if case.turned:
            runs = (Run(0, skip + size - low, low), Run(HIGH, skip, size - low))
        populate(guest, runs, ABOVE)
        size, placed = guest.unplaced.size, guest.unplaced.placed
        found = ram_file.best(size, placed)
        assert found == runs
        as_file = ram_file.best(size, placed, from_start=True)
        assert as_file == (None if case.turned or skip else runs)
        guest.unplaced.place(found)
        kernel = find_kernel(guest.memory, cache=Cache(tmp_path))
        assert (kernel.text, kernel.kaslr_shift) == (ABOVE.text, ABOVE.shift)


def test_an_end_of_low_ram_that_the_memory_map_tells(vmm: Vmm) -> None:
    """The kernel lies below the hole, and only what it says of the firmware's memory map helps."""
    size, low = 1536 * MIB, 1000 * MIB
    child = vmm("memfd", size)
    with attach(child.pid) as guest:
        runs = ram_file.split(size, low)
        populate(guest, runs, BELOW, memory_map=size - low)
        assert ram_file.derived_low_ends(size, guest.unplaced.placed) == [low]


@pytest.mark.parametrize("kind", ["memfd", "anonymous"])
def test_ram_without_a_hole_and_without_a_kernel(vmm: Vmm, kind: str) -> None:
    size = 512 * MIB
    child = vmm(kind, size)
    with attach(child.pid) as guest:
        assert ram_file.best(guest.unplaced.size, guest.unplaced.placed) is None
        runs = (Run(0, begin_of(guest, size), size),)
        populate(guest, runs, BELOW)
        assert ram_file.best(guest.unplaced.size, guest.unplaced.placed) == runs
