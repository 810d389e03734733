"""The guest of any VMM by its process: a child of ours plays one, then QEMU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import GuestGone, MemoryFault, NoTarget, NotPermitted
from live.core.hypervisor import Guest, Hypervisor, UnplacedRam
from live.core.memory import GuestPhysical, MemoryReader, Run, Segment
from live.hypervisors.host import memory as host_memory
from live.hypervisors.host.maps import PROC, read_maps
from live.hypervisors.process import PROCESS
from live.hypervisors.process import guest as process_guest
from live.hypervisors.process.handle import command_of, keeps_memory_from_host, why_no_memory
from live.linux.system import LinuxFinder
from live.testing import GuestContract, MemoryContract, Subject
from tests.guest.fixtures import Boot
from tests.hypervisors.vmm import KINDS, MIB, Vmm, attach, begin_of, children, write
from tests.test_tasks import rows, settled

GIB = 1 << 30


@pytest.fixture
def vmm() -> Iterator[Vmm]:
    with children() as start:
        yield start


def test_a_fake_proc(tmp_path: Path) -> None:
    process = tmp_path / "7"
    (process / "fd").mkdir(parents=True)
    (process / "maps").write_text("7f0000000000-7f0020000000 rw-p 00000000 00:00 0\n")
    (process / "comm").write_bytes(b"ev\x1b[31mil\xff\n")
    (process / "stat").write_text("7 (a) b) S 2 0 0 0 -1 2129984 0 0")
    assert [one.length for one in read_maps(7, tmp_path)] == [512 * MIB]
    assert command_of(7, tmp_path) == "ev\x1b[31mil\ufffd"
    assert why_no_memory(7, tmp_path) == "is a thread of this host's kernel"
    (process / "stat").write_text("7 (a) Z 2 0 0 0 -1 4194304 0 0")
    assert why_no_memory(7, tmp_path) == "has ended"
    assert not keeps_memory_from_host(7, tmp_path)
    (process / "fd" / "9").symlink_to("anon_inode:[kvm-gmem]")
    assert keeps_memory_from_host(7, tmp_path)
    with pytest.raises(GuestGone):
        read_maps(8, tmp_path)
    assert (command_of(8, tmp_path), why_no_memory(8, tmp_path)) == ("?", "has ended")


class TestContract(GuestContract):
    @pytest.fixture(params=["anonymous", "pieces"])
    def subject(self, request: pytest.FixtureRequest, vmm: Vmm) -> Subject:
        child = vmm(request.param)

        def put(data: bytes) -> GuestPhysical:
            gpa = GuestPhysical(64 * MIB - 0x2345)
            with attach(child.pid) as guest:
                write(guest, gpa, data)
            return gpa

        return Subject(open=lambda: PROCESS.attach(str(child.pid)), put=put, end=child.kill)


class TestPlacedMemory(MemoryContract):
    @pytest.fixture(params=[(kind, tried) for kind in KINDS for tried in (False, True)])
    def memory(self, request: pytest.FixtureRequest, vmm: Vmm) -> Iterator[MemoryReader]:
        kind, tried = request.param
        with attach(vmm(kind).pid) as guest:
            runs = [Run(0, 32 * MIB, 16 * MIB), Run(16 * MIB, 0, 32 * MIB), Run(4 * GIB, 50 * MIB, MIB)]
            write(guest, 0, b"the first byte")
            guest.unplaced.place(runs)
            yield guest.unplaced.placed(runs) if tried else guest.memory


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_declared(vmm: Vmm, kind: str) -> None:
    hypervisor: Hypervisor = PROCESS
    assert (hypervisor.scheme, list(hypervisor.guests())) == ("process", [])
    child = vmm(kind)
    before = os.listdir("/proc/self/fd")
    guest: Guest = hypervisor.attach(str(child.pid))
    assert guest.alive()
    assert (guest.registers, guest.pauses, guest.notices) == (None, None, None)
    assert (list(guest.offers), list(guest.notes)) == ([], [])
    assert guest.info.pid == child.pid
    assert guest.info.name == f"{command_of(child.pid)} (pid {child.pid})"
    assert guest.unplaced is not None
    assert guest.info.memory == guest.unplaced.size
    guest.keep_memory_only()
    guest.unplaced.place([Run(0, 0, MIB), Run(4 * GIB, MIB, MIB)])
    guest.close()
    guest.close()
    assert not guest.alive()
    with pytest.raises(GuestGone, match="was closed"):
        guest.memory.read(0, 1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", KINDS)
def test_memory_before_and_after_it_is_placed(vmm: Vmm, kind: str) -> None:
    size = 64 * MIB
    child = vmm(kind, size)
    with attach(child.pid) as guest:
        skip = begin_of(guest, size)
        assert skip == 0 or kind in ("anonymous", "split")
        ram: UnplacedRam = guest.unplaced
        plain: MemoryReader = guest.memory
        assert list(plain.segments) == [Segment(start=0, length=ram.size)]
        assert (plain.flat is None) == (kind in ("anonymous", "split"))
        how = f"/proc/{child.pid}/mem" if plain.flat is None else "/memfd:guest-ram, no copies"
        assert how in plain.description
        write(guest, skip + size // 2 - 2, b"half")
        assert bytes(plain.read(skip + size // 2 - 2, 4)) == b"half"
        plain.refresh()
        assert plain.rest() == 0
        assert all(one.length <= ram.size for one in plain.populated())
        half = (Run(0, skip, size // 2), Run(4 * GIB, skip + size // 2, size // 2))
        tried = ram.placed(half)
        ram.place(half)
        ram.place(half)
        for reader in (tried, guest.memory):
            assert [(one.start, one.length) for one in reader.segments] == [
                (0, size // 2),
                (4 * GIB, size // 2),
            ]
            assert bytes(reader.read(size // 2 - 2, 2)) + bytes(reader.read(4 * GIB, 2)) == b"half"
            assert len(reader.read(4 * GIB, size // 2)) == size // 2
            for gpa, length, bad in ((size // 2 - 1, 2, size // 2), (4 * GIB - 1, 1, 4 * GIB - 1)):
                with pytest.raises(MemoryFault) as caught:
                    reader.read(gpa, length)
                assert caught.value.address == bad
        assert bytes(plain.read(skip + size // 2 - 2, 4)) == b"half", "what was read with before still works"


@pytest.mark.parametrize("kind", KINDS)
def test_runs_that_touch_are_one_segment(vmm: Vmm, kind: str) -> None:
    size = 64 * MIB
    with attach(vmm(kind, size).pid) as guest:
        skip = begin_of(guest, size)
        write(guest, skip + size // 2 - 2, b"half")
        swapped = (Run(0, skip + size // 2, size // 2), Run(size // 2, skip, size // 2))
        guest.unplaced.place(swapped)
        for reader in (guest.memory, guest.unplaced.placed(swapped)):
            assert bytes(reader.read(0, 2)) + bytes(reader.read(size - 2, 2)) == b"lfha"
            assert len(reader.read(size // 2 - 100, 200)) == 200
            assert list(reader.segments) == [Segment(start=0, length=size)]


@pytest.mark.parametrize(
    "wrong",
    [[], [Run(0, 0, 1 << 40)], [Run(0, -1, 1)], [Run(0, 0, 2), Run(1, 0, 2)], [Run(4096, 0, 0)]],
    ids=["nothing", "too long", "before RAM", "overlapping", "empty"],
)
def test_runs_that_make_no_sense(vmm: Vmm, wrong: list[Run]) -> None:
    with attach(vmm("memfd").pid) as guest, pytest.raises(ValueError, match="RAM"):
        guest.unplaced.place(wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["exit", "exec"])
def test_a_process_that_ends_or_executes_something_else(vmm: Vmm, kind: str, how: str) -> None:
    child = vmm(kind)
    assert child.stdin is not None
    assert child.stdout is not None
    with attach(child.pid) as guest:
        assert guest.alive()
        child.stdin.write(b"exec\n" if how == "exec" else b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == (b"ready\n" if how == "exec" else b"")
        if how == "exit":
            child.wait()
        assert not guest.alive()
        assert "has ended; start it to watch again" in str(guest.gone())
        if guest.memory.flat is None:
            with pytest.raises(GuestGone, match="ended while the guest's memory was read"):
                guest.memory.read(0, 8)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (None, "No process is named; give"),
        ("web-1", "'web-1' is no process id; give"),
        ("0", "'0' is no process id; give"),
        ("-1", "is no process id; give"),
        ("4294967297", "is no process id; give"),
        ("²", "is no process id; give"),
        ("4194304", "There is no process 4194304; give"),
    ],
)
def test_a_target_that_is_no_process(target: str | None, sentence: str) -> None:
    with pytest.raises(NoTarget, match=sentence):
        PROCESS.attach(target)


def test_a_process_that_runs_no_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            with pytest.raises(NoTarget, match=r"\(\w+\) has no memory of 32 MiB or more .*; give the id"):
                PROCESS.attach(str(child.pid))
        finally:
            child.kill()
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoTarget, match=r"\(true\) has ended, so it runs no guest"):
            PROCESS.attach(str(child.pid))
    monkeypatch.setattr(process_guest, "read_maps", lambda _: [])
    monkeypatch.setattr(process_guest, "why_no_memory", lambda _: "is a thread of this host's kernel")
    with pytest.raises(NoTarget, match="is a thread of this host's kernel, so it runs no guest"):
        PROCESS.attach(str(os.getpid()))


def test_a_process_of_somebody_else() -> None:
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(NotPermitted, match=r"mappings of process 1 may not be read .*; run as"):
            PROCESS.attach("1")
    finally:
        if before == 0:
            os.seteuid(before)


def test_memory_that_may_neither_be_mapped_nor_copied(vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
    child = vmm("memfd")
    monkeypatch.setattr(host_memory, "open_backing", lambda *_: None)
    with attach(child.pid) as guest:
        assert "copied through" in guest.memory.description
        assert "shared memory /memfd:guest-ram may not be opened" in guest.memory.description

    def refused(pid: int) -> int:
        raise NotPermitted(f"The memory of process {pid} may not be read (test); run as root.")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(host_memory, "open_mem", refused)
    with pytest.raises(NotPermitted, match="may not be read"):
        PROCESS.attach(str(child.pid))
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_is_too_short_is_not_mapped(vmm: Vmm) -> None:
    child = vmm("memfd")
    with attach(child.pid) as guest:
        file = next(
            path for path in (PROC / str(child.pid) / "fd").iterdir() if "guest-ram" in os.readlink(path)
        )
        os.truncate(file, 32 * MIB)
        guest.unplaced.place([Run(0, 0, 16 * MIB), Run(4 * GIB, 16 * MIB, 48 * MIB)])
        assert guest.memory.flat is None, "read from what is mapped already"
        assert bytes(guest.memory.read(4096, 4)) == bytes(4)


HIGH = 1 << 32
BIG = 5 << 10
"""MiB: more than fits under the PCI hole of either machine."""


@pytest.mark.parametrize("ram", ["private", "memfd"])
@pytest.mark.parametrize(
    ("machine", "memory", "low"),
    [
        ("q35", 512, 512),
        ("q35", 2048, 2048),
        ("q35", BIG, 2048),
        ("pc", BIG, 3072),
        ("q35,max-ram-below-4g=1536M", BIG, 1536),
    ],
)
def test_qemu_by_its_process(boot: Boot, machine: str, ram: str, memory: int, low: int) -> None:
    guest = boot(machine=machine, ram=ram, memory=memory)
    with attach(guest.pid) as attached:
        assert list(attached.notes) == []
        finder = LinuxFinder()
        assert finder.place(attached.unplaced, X86_64)
        expected = [(0, low * MIB)] + ([(HIGH, (memory - low) * MIB)] if memory > low else [])
        assert [(one.start, one.length) for one in attached.memory.segments] == expected
        assert (attached.memory.flat is None) == (ram == "private")
        system = finder.find(attached.memory, X86_64)
        assert system.system.release == guest.kernel.release

        def look() -> list[tuple[object, ...]]:
            seen = system.snapshot(0, "test")
            assert not seen.torn
            return sorted(
                (t.identity.pid, t.ppid, t.comm.decode(), t.uid, t.kernel, t.exit_state == 0x20)
                for t in seen.tasks
            )

        seen, listed = settled(guest, look)
        assert seen == rows(listed)
