"""A toy system on a toy machine under a toy hypervisor: all the way from memory to the outputs."""

from __future__ import annotations

import io
import json
import re

import pytest

from live.core.errors import NoKernelFound, NoTarget, SymbolsMissing
from live.core.events import Event
from live.output import registry as outputs
from live.output.contract import Context
from live.recording.opening import open_recording
from live.recording.record import Recorder
from live.recording.replay import Replay
from live.recording.stepper import Frames
from live.watch.monitor import Monitor
from live.watch.session import Session
from tests.toy.hypervisor import TOYS, ToyGuest
from tests.toy.story import EVENTS, RUNNING, ScriptedOffer, short, story
from tests.toy.system import TOY, ToySystem
from tests.toy.world import World


def session_of(world: World, *offers: ScriptedOffer) -> Session:
    return Session(ToyGuest("box", world.ram, offers), systems_wanted=[TOY])


def poll(world: World) -> tuple[list[Event], Monitor]:
    """The events of the story in poll mode: each step happens when the one before was seen."""
    events: list[Event] = []
    steps = story(world)
    with session_of(world) as session:
        monitor = Monitor(session, interval=0.001)
        for batch in monitor.batches(duration=30):
            events += batch
            if batch:
                step = next(steps, None)
                if step is None:
                    break
                step()
    return events, monitor


def trap(world: World, mode: str = "auto") -> tuple[list[Event], Monitor, ScriptedOffer]:
    """The events of the story by traps."""
    offer = ScriptedOffer(world)
    with session_of(world, offer) as session:
        monitor = Monitor(session, mode=mode)
        events = list(monitor.events(count=len(EVENTS)))
    return events, monitor, offer


def test_polled():
    events, monitor = poll(World())
    assert [short(event) for event in events] == EVENTS
    assert monitor.mode == "poll"
    counts = monitor.counts
    assert (counts.starts, counts.execs, counts.ends) == (5, 1, 3)
    assert (counts.missed, counts.unexpected, counts.late, counts.torn) == (0, 0, 0, 0)


def test_trapped():
    events, monitor, offer = trap(World())
    assert [short(event) for event in events] == EVENTS
    assert monitor.mode == "scripted"
    triggers = [event.occasion.trigger for event in events]
    assert triggers == ["attach"] * 2 + ["forked"] + ["executed"] * 3 + ["exited", "forked", "exited"]
    counts = monitor.counts
    assert (counts.missed, counts.unexpected, counts.late, counts.unreadable) == (0, 0, 0, 0)
    (source,) = offer.sources
    assert source.closed
    resumed = [value for call, value in source.calls if call == "resume"]
    assert len(resumed) == source.counters.delivered == 5


CALL, CHANGE = "system call", "asid change"


@pytest.mark.parametrize(("mode", "exec_"), [("asid", CALL), ("diff", CHANGE)])
def test_trapped_by_asids(mode, exec_):
    """An image is complete at its first system call, and for the control at the change to its asid."""
    events, monitor, offer = trap(World(), mode)
    assert [short(event) for event in events] == EVENTS
    assert monitor.mode == mode
    triggers = [event.occasion.trigger for event in events]
    assert triggers == ["attach"] * 2 + [CHANGE] + [exec_] * 3 + [CHANGE] * 3
    counts = monitor.counts
    assert (counts.missed, counts.unexpected, counts.late, counts.premature) == (0, 0, 0, 0)
    (source,) = offer.sources
    assert source.closed
    assert source.counters.delivered == (6 if mode == "asid" else 5)


def test_what_is_settled_is_not_trapped_again():
    """Of the story, in asid mode: no call of the shell, and none of a process that has not changed."""
    world = World()
    offer = ScriptedOffer(world)
    with session_of(world, offer) as session:
        list(Monitor(session, mode="asid").events(count=len(EVENTS)))
    (source,) = offer.sources
    last = [request for call, request in source.calls if call == "arm"][-1]
    assert {world.page(world.init), world.page(world.shell)} <= last.settled
    assert {word.gpa for word in last.words} >= {24, 32, world.init, world.shell}


def test_auto_is_asid_where_the_kernel_lacks_a_function(monkeypatch):
    def lacks(self):
        raise SymbolsMissing("this toy has no functions; watch it with --mode poll")

    monkeypatch.setattr(ToySystem, "points", lacks)
    events, monitor, _ = trap(World())
    assert [short(event) for event in events] == EVENTS
    assert (monitor.mode, monitor.choice.skipped) == ("asid", ())
    with pytest.raises(SymbolsMissing, match="no functions"):
        trap(World(), "scripted")


@pytest.mark.parametrize("mode", ["auto", "asid", "diff"])
def test_polled_and_trapped_show_the_same_processes(mode):
    def processes(events):
        return [getattr(event, "new", None) or event.process for event in events]

    assert processes(poll(World())[0]) == processes(trap(World(), mode)[0])


def test_what_is_known_of_a_process():
    *_, last = trap(World())[0]
    process = last.process
    assert (process.uid, process.args, process.exe) == (1000, ("sh",), None)
    assert process.start_ns == 1_700_000_000_004_000_000
    assert process.parent is not None
    assert (process.ppid, process.parent.pid) == (2, 2)
    assert process.exited is not None
    assert process.exited.code == 7


def test_a_process_that_came_and_went_between_two_snapshots_is_counted():
    world = World()
    with session_of(world) as session:
        monitor = Monitor(session, interval=0.001)
        batches = monitor.batches(duration=30)
        assert [short(event) for event in next(batches)] == RUNNING
        child = world.fork(2)
        world.exit(child, 0)
        world.reap(child)
        while not monitor.counts.missed:
            assert next(batches) == []
        assert monitor.counts.missed == 1
        batches.close()


def shown(name: str, events: list[Event], out: io.StringIO) -> str:
    with session_of(World()) as session:
        sink = outputs.output(name)(Context(out=out, system=session.system, host="box", mode="poll"))
    for event in events:
        sink.show(event)
        sink.pause(lambda: "so far, so good")
    sink.close()
    return out.getvalue()


@pytest.mark.parametrize("name", list(outputs.BUILT_IN))
def test_every_output_shows_every_event(name):
    text = shown(name, poll(World())[0], io.StringIO())
    assert all(re.search(rf"\b{word}\b", text) for word in ("init", "sh", "ls"))
    assert "Traceback" not in text


def test_the_plain_lines():
    lines = shown("plain", poll(World())[0], io.StringIO()).splitlines()
    rows = [line.split()[1:] for line in lines[1:]]
    assert rows == [
        ["start", "running", "1", "0", "1000", "init", "-", "/sbin/init"],
        ["start", "running", "2", "1", "1000", "sh", "-", "/bin/sh"],
        ["start", "fork", "3", "2", "1000", "sh", "-", "sh"],
        ["exec", "exec", "3", "2", "1000", "ls", "-", "/bin/ls", "-l"],
        ["end", "exit", "3", "2", "1000", "ls", "0", "/bin/ls", "-l"],
        ["start", "fork", "4", "2", "1000", "sh", "-", "sh"],
        ["end", "exit", "4", "2", "1000", "sh", "7", "sh"],
    ]


def test_the_documents():
    documents = [json.loads(line) for line in shown("ecs", trap(World())[0], io.StringIO()).splitlines()]
    assert [(one["event"]["action"], one["process"]["pid"]) for one in documents] == [
        ("running", 1),
        ("running", 2),
        ("fork", 3),
        ("end", 3),
        ("exec", 3),
        ("exec", 3),
        ("end", 3),
        ("fork", 4),
        ("end", 4),
    ]
    assert {one["host"]["hostname"] for one in documents} == {"toybox"}
    assert documents[-1]["process"]["exit_code"] == 7
    assert documents[-1]["pse"]["mode"] == "poll"


def test_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    text = shown("table", poll(World())[0], Terminal())
    assert "toy" not in text
    assert "/bin/ls -l" in text
    assert "\x1b[" in text


@pytest.mark.parametrize("mode", ["scripted", "asid", "diff"])
@pytest.mark.parametrize("frames", [None, Frames(start=True)], ids=["reads", "frames"])
def test_recorded_and_replayed(tmp_path, mode, frames):
    world = World()
    path = tmp_path / "toy.pse"
    with (
        session_of(world, ScriptedOffer(world)) as session,
        Recorder(session, path, mode=mode, frames=frames) as recorder,
    ):
        live = [short(event) for event in recorder.events(count=len(EVENTS))]
    assert live == EVENTS
    with open_recording(path) as recording:
        assert recording.header.mode == mode
        assert (recording.header.machine, recording.header.os) == ("toy", "toy")
        replay = Replay(recording)
        assert [short(event) for _, event in replay.events()] == EVENTS
        assert replay.differences == 0


def test_memory_without_a_toy():
    with pytest.raises(NoKernelFound, match="no toy"):
        Session(ToyGuest("empty", bytearray(1 << 16)), systems_wanted=[TOY])
    with pytest.raises(NoKernelFound, match="cannot be read"):
        Session(ToyGuest("small", bytearray(16)), systems_wanted=[TOY])


def test_the_hypervisor():
    TOYS.running.clear()
    with pytest.raises(NoTarget):
        TOYS.attach(None)
    TOYS.running["box"] = World().ram
    assert [one.name for one in TOYS.guests()] == ["box"]
    with Session(TOYS.attach("box"), systems_wanted=[TOY]) as session:
        assert (session.name, session.os.title) == ("box", "Toy 1")
        assert session.notes == (
            "the guest's clock stands still: it is paused, or it was reset and this is the boot before",
        )
