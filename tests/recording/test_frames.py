"""Keyframes, and what is made of them."""

import contextlib
import struct
from types import SimpleNamespace

import pytest

from live.core.errors import MemoryFault, TargetError
from live.core.memory import Segment
from live.recording.export import create, export
from live.recording.filters import EventFilter
from live.recording.frames import take_frame
from live.recording.hold import hold_of
from live.recording.opening import open_recording
from live.recording.past_memory import StateMemory, frame_of
from live.recording.replay import Replay
from live.recording.stepper import Frames
from tests.linux.synthetic import RAM
from tests.recording.build import Lab


@contextlib.contextmanager
def hold(held):
    yield lambda: True


def framed(tmp_path, **frames):
    lab = Lab(tmp_path, Frames(**frames), hold=hold)
    lab.guest.task(1, b"init")
    lab.live += lab.steps.attach()
    lab.snapshot()
    return lab


def test_a_frame_is_all_of_memory_at_its_event(tmp_path):
    lab = framed(tmp_path, on=(EventFilter("exec:*/tool3"),))
    seen = {}
    lab.guest.ram[0x100000:0x101000] = b"before".ljust(4096, b".")
    for pid in range(100, 106):
        task = lab.fork(pid)
        lab.guest.ram[0x100000:0x100006] = b"at %3d" % pid
        lab.exec(task, b"tool", f"/bin/tool{pid % 5}")
        seen[pid] = bytes(lab.guest.ram)
        lab.end(task)
    lab.guest.ram[0x100000:0x101000] = bytes(4096)
    lab.writer.close()
    with open_recording(lab.path) as recording:
        frames = [step for step in recording.steps() if step.kind == "frame"]
        assert [(step.cause, step.still) for step in frames] == [("start", True), ("event", True)]
        memory = StateMemory(recording, recording.step(frames[1].after))
        assert (memory.complete, memory.still) == (True, True)
        assert memory.read(0, RAM) == seen[103]
        assert StateMemory(recording, frames[1]).read(0, RAM) == seen[103]
        first = StateMemory(recording, frames[0])
        assert first.complete
        assert first.read(0x100000, 16) == bytes(16)
        for step in recording.steps():
            assert (frame_of(recording, step) is not None) == (
                step.kind == "frame" or step.id + 1 in {frame.id for frame in frames}
            )
        assert [event for _, event in Replay(recording).events()] == lab.live


def test_what_follows_a_frame_is_recorded_against_it(tmp_path):
    """A page that a frame saw in another state than the last step counts as changed at the next step."""
    lab = framed(tmp_path, on=(EventFilter("start:odd"),))
    address = lab.guest.tasks[1]
    comm = lab.guest.gpa(address) + 8
    original = bytes(lab.guest.ram[comm : comm + 4])
    lab.fork(9, b"other")
    lab.guest.ram[comm : comm + 4] = b"1234"
    lab.fork(10, b"odd")
    lab.guest.ram[comm : comm + 4] = original
    lab.snapshot()
    lab.guest.ram[comm : comm + 4] = b"5678"
    lab.writer.close()
    with open_recording(lab.path) as recording:
        steps = list(recording.steps())
        assert [step.kind for step in steps][-3:] == ["trap", "frame", "look"]
        assert StateMemory(recording, steps[-3]).read(comm, 4) == b"1234"
        assert StateMemory(recording, steps[-1]).read(comm, 4) == original
        assert [event for _, event in Replay(recording).events()] == lab.live


def test_pages_are_stored_once(tmp_path):
    lab = framed(tmp_path, on=(EventFilter("exec:*/tool1"),))
    lab.guest.ram[0x100000:0x180000] = bytes(range(256)) * 2048
    for first in range(100, 125, 5):
        lab.run(5, first)
        lab.guest._free = 0x80000
    lab.writer.close()
    with open_recording(lab.path) as recording:
        assert sum(step.kind == "frame" for step in recording.steps()) == 6
        pages = recording._rows("SELECT max(id) FROM block")[0][0]
    assert pages < 700, "128 equal pages are one"


def test_frames_by_time_come_at_the_next_step(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("live.recording.stepper.time.monotonic", lambda: now[0])
    lab = framed(tmp_path, every=10.0)
    for second in range(30):
        now[0] += 1
        if second % 3 == 0:
            lab.snapshot()
    lab.writer.close()
    with open_recording(lab.path) as recording:
        assert [step.cause for step in recording.steps() if step.kind == "frame"] == [
            "start",
            "timer",
            "timer",
        ]


def test_a_frame_that_breaks_off_is_none(tmp_path):
    lab = framed(tmp_path)
    lab.fork(5)
    read, seen = lab.guest.memory.read, []

    def break_off(gpa, length):
        seen.append(gpa)
        if gpa >= RAM // 2:
            raise KeyboardInterrupt
        return read(gpa, length)

    lab.guest.memory.read = break_off
    with pytest.raises(KeyboardInterrupt):
        take_frame(lab.memory, lab.writer, {}, "start", after=lab.writer.last_step, still=lambda: True)
    lab.guest.memory.read = read
    lab.fork(6)
    lab.writer.close()
    with open_recording(lab.path) as recording:
        steps = list(recording.steps())
        assert (steps[-2].kind, steps[-2].error) == ("frame", "interrupted")
        assert frame_of(recording, steps[-3]) is None
        assert not StateMemory(recording, steps[-2]).complete
        assert [event for _, event in Replay(recording).events()] == lab.live


def test_unreadable_and_untouched_memory_in_frames(tmp_path):
    lab = Lab(tmp_path, Frames(start=True), hold=hold)
    lab.guest.task(1)
    source, read = lab.guest.memory, lab.guest.memory.read

    def refuse(gpa, length):
        if gpa <= 0x150000 < gpa + length:
            raise MemoryFault(0x150000, "I/O error")
        if gpa >= 0x180000:
            raise AssertionError("never touched, never read")
        return read(gpa, length)

    source.read = refuse
    source.populated = lambda: [Segment(start=0, length=0x100000), Segment(start=0x140000, length=0x40000)]
    lab.steps.attach()
    lab.writer.close()
    with open_recording(lab.path) as recording:
        memory = StateMemory(recording, recording.step(recording.count("step")))
        assert memory.read(0x1FF000, 4096) == bytes(4096)
        assert memory.read(0x120000, 8) == bytes(8)
        with pytest.raises(MemoryFault, match="could not be read live"):
            memory.read(0x150000, 1)


def test_raw_and_elf_exports_hold_the_memory_at_the_event(tmp_path):
    lab = framed(tmp_path, on=(EventFilter("exec:tool"),))
    task = lab.fork(7)
    lab.exec(task, b"tool")
    wanted = bytes(lab.guest.ram)
    lab.end(task)
    lab.writer.close()
    with open_recording(lab.path) as recording:
        frame = max(step.id for step in recording.steps() if step.kind == "frame")
        memory = StateMemory(recording, recording.step(frame))
        assert export(memory, tmp_path / "out.raw") == RAM
        assert (tmp_path / "out.raw").read_bytes() == wanted
        export(memory, tmp_path / "out.elf")
        elf = (tmp_path / "out.elf").read_bytes()
        assert elf[:6] == b"\x7fELF\x02\x01"
        kind, _, offset, _, paddr, size, _, _ = struct.unpack_from("<IIQQQQQQ", elf, 64)
        assert (kind, paddr, size) == (1, 0, RAM)
        assert elf[offset:] == wanted
        with pytest.raises(TargetError, match="exists already"):
            export(memory, tmp_path / "out.raw")
        export(memory, tmp_path / "out.raw", force=True)


def test_a_raw_export_has_the_hole_of_the_machine(tmp_path):
    class Two:
        segments = (Segment(start=0, length=8192), Segment(start=1 << 20, length=4096))

        def nonzero(self):
            return [1, 256, 300]

        def read(self, gpa, length):
            return bytes([gpa >> 12 & 0xFF]) * length

    assert export(Two(), tmp_path / "two.raw") == (1 << 20) + 4096
    raw = (tmp_path / "two.raw").read_bytes()
    assert (raw[4096], raw[8192], raw[1 << 20], raw[-1]) == (1, 0, 0, 0)
    export(Two(), tmp_path / "two.elf")
    assert len((tmp_path / "two.elf").read_bytes()) == 4096 + 8192 + 4096


def test_a_failed_export_leaves_nothing(tmp_path):
    def fail():
        with create(tmp_path / "x", False) as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


class FakeGuest:
    def __init__(self, vcpus=1):
        self.registers = SimpleNamespace(vcpus=range(vcpus))
        self.pauses = self
        self.said = []
        self.state = "running"

    @contextlib.contextmanager
    def standing(self):
        running = self.state == "running"
        self.said += ["stop"] * running
        yield running
        self.said += ["cont"] * running


class FakeSource:
    holds_all = False

    def __init__(self):
        self.hold_timeouts = 0

    @property
    def counters(self):
        return self


def test_a_guest_is_paused_for_a_frame_and_goes_on():
    guest = FakeGuest()
    with hold_of(guest, None)(False) as still:
        assert (guest.said, still()) == (["stop"], True)
    assert guest.said == ["stop", "cont"]
    guest = FakeGuest()
    guest.state = "paused"
    with hold_of(guest, None)(False) as still:
        assert still()
    assert guest.said == [], "it was paused by somebody else, and stays so"


@pytest.mark.parametrize(("vcpus", "timeouts", "still"), [(1, 0, True), (1, 1, False), (2, 0, False)])
def test_a_trap_holds_a_guest_of_one_vcpu_until_its_limit(vcpus, timeouts, still):
    guest, source = FakeGuest(vcpus), FakeSource()
    hold = hold_of(guest, source)
    with hold(False) as before_anything_is_trapped:
        assert before_anything_is_trapped()
    assert guest.said == ["stop", "cont"]
    with hold(True) as held:
        source.hold_timeouts += timeouts
        assert held() == still
    with hold(False) as unheld:
        assert not unheld()
    assert guest.said == ["stop", "cont"]
