"""Bugs that were found on real guests do not come back: each trace is replayed, and tells its story."""

import json

import pytest

from live.core.events import StartReason
from live.output import ecs
from live.recording.opening import open_recording
from live.recording.replay import Replay
from tests.recording.races import RACES, result_of
from tests.recording.traces import BUGS, LIMIT, TRACES, golden, since_attach, story

NEWER = ("no_new_privs", "seccomp", "login_uid", "login_session", "in_user_namespace", "capabilities")


def unsecured(line):
    """A document without what was not read yet when the traces were made; `Replay` compares what was."""
    found = json.loads(line)
    for name in NEWER:
        found["pse"].pop(name, None)
    for name in ("thread", "tty"):
        found["process"].pop(name, None)
    return found


@pytest.mark.parametrize("name", BUGS)
def test_a_trace_gives_its_events_again_byte_for_byte(name):
    path, trace = TRACES / f"{name}.pse", BUGS[name]
    with open_recording(path) as recording:
        head = recording.header
        replay = Replay(recording)
        replayed = [event for _, event in replay.events()]
        recorded = [one.event for one in recording.events()]

        def lines(events):
            return [ecs.line(event, head.system, host=head.target, mode=head.mode) for event in events]

        assert (replay.differences, replay.first) == (0, None)
        assert list(map(unsecured, lines(replayed))) == list(map(unsecured, lines(recorded)))
    new = [event for event in replayed if getattr(event, "reason", None) is not StartReason.RUNNING]
    assert story(new) == trace.story, trace.wrong
    assert new[-1].occasion.missed == trace.missed
    assert head.mode == trace.mode
    assert golden(since_attach(path)) == (TRACES / f"{name}.jsonl").read_text()


def test_what_the_traces_were_made_to_show():
    """What a line of a story does not say."""
    (reaped,) = [e for e in since_attach(TRACES / "killed.pse") if getattr(e, "reason", None) == "signal"]
    assert (reaped.status.code, reaped.status.signal, reaped.status.core) == (None, 9, False)
    helper = [e for e in since_attach(TRACES / "usermode-helper.pse") if hasattr(e, "new") and e.old.kernel]
    assert [(e.new.exe, len(e.new.args)) for e in helper] == [("/programs/true", 2)]
    with open_recording(TRACES / "hold-ran-out.pse") as recording:
        assert "resync" in {step.cause for step in recording.steps() if step.kind == "look"}


def test_there_is_nothing_else_and_it_is_small():
    files = sorted(TRACES.iterdir())
    names = [f"{name}.{kind}" for name in BUGS for kind in ("jsonl", "pse")]
    names += [f"{name}.{kind}" for name in RACES for kind in ("json", "pse")]
    assert [path.name for path in files] == sorted(names)
    assert sum(path.stat().st_size for path in files) <= LIMIT


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_counted_as_the_guests_own_tracer_says(name):
    path = TRACES / f"{name}.pse"
    created = {tuple(identity) for identity in json.loads((TRACES / f"{name}.json").read_text())}
    with open_recording(path) as recording:
        replay = Replay(recording)
        assert list(replay.events())
        assert (replay.differences, recording.header.mode) == (0, RACES[name].mode)
    result = result_of(path)
    assert result.true(created), RACES[name].wrong
    assert len(result.seen) > 0 < result.missed
