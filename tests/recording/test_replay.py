import pytest

from live.core.errors import MemoryFault, TargetError
from live.core.traps import Abi, AsidChange, Syscall
from live.output import ecs
from live.recording.codec import decode_event, decode_trap, dumps, encode_event, encode_trap, loads
from live.recording.opening import open_recording
from live.recording.past_memory import ReplayMemory, StateMemory
from live.recording.replay import Replay
from tests.linux.synthetic import DIRECT
from tests.recording.build import SYSTEM, Lab


def lines(events):
    return [ecs.line(event, SYSTEM, host="vm", mode="plugin") for event in events]


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    lab.guest.task(1, b"init")
    lab.guest.task(2, b"kthreadd", kernel=True)
    lab.snapshot("attach")
    lab.run(20)
    lab.snapshot("proof")
    lab.writer.close()
    return lab


def test_a_replay_gives_the_same_events_byte_for_byte(lab):
    assert len(lab.live) == 2 + 20 * 5
    with open_recording(lab.path) as recording:
        replay = Replay(recording)
        replayed = list(replay.events())
        assert [number for number, _ in replayed] == list(range(1, len(lab.live) + 1))
        assert lines(event for _, event in replayed) == lines(lab.live)
        assert (replay.differences, replay.first) == (0, None)


def test_the_recorded_events_are_the_live_ones(lab):
    with open_recording(lab.path) as recording:
        assert [one.event for one in recording.events()] == lab.live
        assert recording.header == lab.header
        assert recording.end()["reason"] == "done"
        assert recording.symbols() == lab.guest.isf.read_bytes()


def test_the_guest_moves_on_and_the_recording_does_not(lab):
    lab.guest.ram[:] = bytes(len(lab.guest.ram))
    with open_recording(lab.path) as recording:
        assert lines(event for _, event in Replay(recording).events()) == lines(lab.live)


def test_a_change_of_one_recorded_byte_is_noticed(tmp_path):
    lab = Lab(tmp_path)
    task = lab.guest.task(7, b"init")
    lab.snapshot()
    gpa = lab.guest.gpa(task) + 8
    lab.guest.ram[gpa : gpa + 4] = b"evil"
    lab.snapshot()  # no event: comm alone is none
    lab.fork(8, parent=task)
    lab.writer.close()
    with open_recording(lab.path) as recording:
        assert Replay(recording).events()
        (step,) = recording.steps(3, 3)
        memory = StateMemory(recording, step)
        assert memory.read(gpa, 4) == b"evil"
        assert StateMemory(recording, recording.step(2)).read(gpa, 4) == b"init"


def test_what_was_not_read_at_a_step_is_refused_with_a_reason(lab):
    with open_recording(lab.path) as recording:
        step = recording.step(3)
        assert step.kind == "trap"
        memory = StateMemory(recording, step)
        with pytest.raises(MemoryFault, match="not recorded at this step") as refused:
            memory.read(0x1000, 4)
        assert (refused.value.address, memory.complete) == (0x1000, False)
        with pytest.raises(MemoryFault, match="not in guest RAM"):
            memory.read(1 << 40, 4)
        replay = ReplayMemory(recording)
        for one in recording.steps(1, 3):
            replay.enter(one)
        with pytest.raises(MemoryFault, match="not recorded at this step"):
            replay.read(0x1000, 4)


def test_the_last_known_version_is_given_when_asked_for(lab):
    with open_recording(lab.path) as recording:
        last = recording.step(recording.count("step"))
        trap = recording.step(4)
        page = lab.guest.gpa(lab.guest.tasks[1])
        assert StateMemory(recording, last).has(page >> 12)
        memory = StateMemory(recording, trap, last_known=True)
        assert memory.read(page, 64) == StateMemory(recording, recording.step(2)).read(page, 64)


def test_a_page_that_cannot_be_read_is_recorded_as_such(tmp_path):
    lab = Lab(tmp_path)
    lab.guest.task(1, b"init")
    bad = lab.guest.task(2, b"odd")
    lab.guest.task(3, b"sh")
    number = lab.guest.allocate(4096, align=4096) - DIRECT >> 12
    lab.guest.set(bad, "task_struct", real_cred=(number << 12) + DIRECT)
    source, read = lab.guest.memory, lab.guest.memory.read

    def refuse(gpa, length):
        if gpa >> 12 == number:
            raise MemoryFault(gpa, "I/O error")
        return read(gpa, length)

    source.read = refuse
    lab.snapshot()
    lab.writer.close()
    assert [event.process.pid for event in lab.live] == [1, 3]
    with open_recording(lab.path) as recording:
        replay = Replay(recording)
        assert lines(event for _, event in replay.events()) == lines(lab.live)
        with pytest.raises(MemoryFault, match="could not be read live"):
            StateMemory(recording, recording.step(2)).read(number << 12, 1)


def test_a_step_that_failed_fails_again(tmp_path):
    lab = Lab(tmp_path)
    lab.guest.task(1)
    lab.snapshot()
    lab.guest.memory.segments = ()
    read = lab.guest.memory.read
    lab.guest.memory.read = lambda gpa, length: (_ for _ in ()).throw(MemoryFault(gpa, "gone"))
    with pytest.raises(MemoryFault):
        lab.snapshot()
    lab.guest.memory.read = read
    lab.fork(5)
    lab.writer.close()
    with open_recording(lab.path) as recording:
        assert [step.error is None for step in recording.steps()] == [True, True, False, True]
        assert [event.process.pid for _, event in Replay(recording).events()] == [1, 5]


def test_a_page_changes_between_refreshes_and_a_look_sees_both(tmp_path):
    """The guest forks while the list is walked: the first walk is repeated, and so is its replay."""
    lab = Lab(tmp_path)
    lab.guest.task(1)
    lab.guest.counters(1, 1, 2)
    refresh, count = lab.memory.refresh, [0]

    def moving():
        count[0] += 1
        if count[0] == 2:
            lab.guest.task(2)
            lab.guest.counters(2, 2, 3)
        refresh()

    lab.memory.refresh = lab.kernel.memory.refresh = moving
    lab.snapshot()
    lab.writer.close()
    assert [event.process.pid for event in lab.live] == [1, 2]
    with open_recording(lab.path) as recording:
        replay = Replay(recording)
        assert lines(event for _, event in replay.events()) == lines(lab.live)
        first, last = recording.step(2).generations
        assert last - first + 1 >= 4


def test_outside_of_a_step_reads_are_live_and_leave_no_trace(tmp_path):
    lab = Lab(tmp_path)
    lab.guest.task(1)
    lab.snapshot()
    before = lab.kernel.counters()
    lab.guest.counters(9, 9, 9)
    assert (before.forks, lab.kernel.counters().forks) == (0, 9)


def test_traps_and_events_survive_the_codec():
    common = {"vcpu": 1, "asid": 8192, "pc": 1 << 63, "sequence": 4, "time_ns": 5, "held": False}
    for trap in (
        AsidChange(**common, registers={"rax": 2**64 - 1}, new_asid=0, moved=True),
        Syscall(**common, registers={}, number=59, abi=Abi.COMPAT),
    ):
        assert decode_trap(loads(dumps(encode_trap(trap)))) == trap


def test_text_that_is_no_utf8_survives(tmp_path):
    lab = Lab(tmp_path)
    task = lab.guest.task(1, b"\xff\x1b[31m")
    lab.snapshot()
    lab.exec(
        task, b"\xfe", "/bin/\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), (b"\xff\xfe",)
    )
    lab.writer.close()
    for event in lab.live:
        assert decode_event(loads(dumps(encode_event(event)))) == event
    with open_recording(lab.path) as recording:
        assert lines(event for _, event in Replay(recording).events()) == lines(lab.live)


def test_events_are_found_by_number_word_and_filter(lab):
    from live.recording.filters import EventFilter, find_event

    with open_recording(lab.path) as recording:
        assert find_event(recording, "first").number == 1
        assert find_event(recording, "last").number == len(lab.live)
        assert find_event(recording, "7").event == lab.live[6]
        assert find_event(recording, "exec:*/tool3").event.new.args == ("tool", "103")
        assert find_event(recording, "start:init").number == 1
        for bad in ("0", "103", "exec:nothing", "exec", "rise:x", "exec:"):
            with pytest.raises(TargetError):
                find_event(recording, bad)
        assert not EventFilter("exec:/bin").matches(lab.live[4])


@pytest.mark.parametrize("pattern", ["/usr/bin/nc", "nc", "*/nc", "(unreachable)/*", "*(deleted)"])
def test_a_filter_finds_a_path_with_and_without_its_marks(lab, pattern):
    from dataclasses import replace

    from live.recording.filters import EventFilter

    event = next(event for event in lab.live if type(event).__name__ == "ProcessStart")
    process = replace(event.process, exe="(unreachable)/usr/bin/nc (deleted)")
    assert EventFilter(f"start:{pattern}").matches(replace(event, process=process))
