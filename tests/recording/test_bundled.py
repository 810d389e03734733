"""The bundled recordings: what the guest did, replayed from one file, with no guest."""

import json
from pathlib import Path

import pytest

from live.linux.record import KernelRecord
from live.output import ecs
from live.recording.codec import decode_event
from live.recording.opening import open_recording
from live.recording.replay import Replay
from tests.recording.make import DATA, LIMIT, SPECS, golden, mode_of
from tests.watch import pse


@pytest.mark.parametrize("kernel", SPECS)
def test_a_replay_gives_the_golden_events(kernel):
    path = DATA / f"linux-{kernel}.pse"
    assert path.stat().st_size <= LIMIT
    wanted = [json.loads(line) for line in (DATA / f"linux-{kernel}.jsonl").read_text().splitlines()]
    assert golden(path).splitlines() == (DATA / f"linux-{kernel}.jsonl").read_text().splitlines()
    with open_recording(path) as recording:
        assert recording.header.title.startswith(f"Linux {SPECS[kernel].kernel}")
        assert recording.header.mode == mode_of(kernel)
        assert recording.end()["reason"] == "KeyboardInterrupt"
        replay = Replay(recording)
        events = [event for _, event in replay.events()]
        assert (replay.differences, replay.first) == (0, None)
    recorded = [decode_event(line) for line in wanted]

    def lines(these):
        head = recording.header
        return [ecs.line(event, head.system, host=head.target, mode=head.mode) for event in these]

    assert lines(events) == lines(recorded)


def test_the_bundled_kernels_differ_in_what_matters():
    places = {}
    for kernel in SPECS:
        with open_recording(DATA / f"linux-{kernel}.pse") as recording:
            places[kernel] = KernelRecord.decode(recording.header.kernel).place
    assert [place.levels for place in places.values()] == [4, 4, 5, 4, 4]
    assert all(place.kaslr_shift for place in places.values())


def test_replay_from_the_command_line(tmp_path):
    path = str(DATA / "linux-6.1.pse")
    run = pse("replay", path, "--json", "--kernel-threads")
    assert (run.returncode, len(run.stdout.splitlines())) == (
        0,
        len((DATA / "linux-6.1.jsonl").read_text().splitlines()),
    )
    assert pse("replay", path, "--json", "--kernel-threads", "--recorded").stdout == run.stdout
    table = pse("replay", path, "--new", "--numbers").stdout.splitlines()
    (first,) = [line.split() for line in table if line.endswith("fork-exit 2 5") and " exec " in line][:1]
    refused = pse("export", path, "--at", first[0], "-o", str(tmp_path / "x.raw"))
    assert refused.returncode == 1
    assert "pages of memory are recorded; choose one with a keyframe" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    partial = pse("export", path, "--at", first[0], "-o", str(tmp_path / "x.raw"), "--partial")
    assert (partial.returncode, (tmp_path / "x.raw").stat().st_size) == (0, 512 << 20)
    again = pse("export", path, "--at", first[0], "-o", str(tmp_path / "x.raw"), "--partial")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_what_a_user_can_get_wrong(tmp_path):
    (tmp_path / "text.pse").write_text("hello")
    for arguments, message in (
        (("replay", str(tmp_path / "absent.pse")), "there is no file"),
        (("replay", str(tmp_path / "text.pse")), "is no recording"),
        (("export", str(DATA / "linux-6.1.pse"), "--at", "exec:nothing", "-o", "x"), "matches exec:nothing"),
        (("export", str(DATA / "linux-6.1.pse"), "--at", "99999", "-o", "x"), "has no event 99999"),
        (("record", "-o", str(tmp_path / "r.pse"), "--keyframe-on", "rise:x"), "is no event filter"),
    ):
        run = pse(*arguments)
        assert (run.returncode, run.stdout) == (1, ""), run
        assert message in run.stderr
        assert len(run.stderr.splitlines()) == 1
    assert not Path("x").exists()
