"""Real guests: what is replayed is what was seen, and a keyframe is the guest's memory."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from live.core.events import ProcessEnd, ProcessExec, ProcessStart
from live.core.traps import AsidChange
from live.recording.filters import EventFilter, find_event
from live.recording.opening import open_recording
from live.recording.past_memory import snapshot_of
from live.recording.record import Recorder
from live.recording.stepper import Frames
from live.watch.session import Session
from tests.accuracy.compare import compare
from tests.guest import GuestSpec
from tests.recording.run import record, trappable
from tests.volplugins import scene
from tests.watch import PSE, Watch, environment, pse

pytestmark = pytest.mark.guest
PACK = scene.packs()[0]


def replayed(path):
    run = pse("replay", str(path), "--json")
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("mode", ["poll", "gdbstub"])
def test_a_replay_is_what_was_seen_live(boot, tmp_path, mode):
    guest = boot()
    work = (["fork-exec", "5"], ["killed", "2"], "sleep 0.3; ls / > /dev/null")
    lines, said = record(guest, tmp_path / "run.pse", "--mode", mode, work=work)
    assert f"{mode} mode" in said
    assert len(lines.splitlines()) > 5
    assert replayed(tmp_path / "run.pse") == lines


def test_recorded_in_plugin_mode_and_watched_by_two_is_the_same(tmp_path):
    """Every event is exact by the guest's own record, and the replay is the live stream byte for byte."""
    with trappable(GuestSpec(cpus=2)) as guest, guest.truth() as recorder:
        lines, _ = record(guest, tmp_path / "run.pse", "--mode", "plugin", "--kernel-threads")
    assert compare(recorder.truth, map(json.loads, lines.splitlines())).exact
    run = pse("replay", str(tmp_path / "run.pse"), "--json", "--kernel-threads")
    assert (run.returncode, run.stdout) == (0, lines)


def test_a_keyframe_of_a_paused_guest_is_its_memory(boot, tmp_path):
    """Byte for byte, and as Volatility sees it: through the recording, an export, and a dump of then."""
    guest = boot(fresh=True)
    scene.prepare(guest, bash=False)
    guest.stop()
    options = ("--mode", "poll", "--keyframe-start", "--duration", "1")
    made = pse("record", str(guest.monitor), "-o", str(tmp_path / "run.pse"), *options)
    assert made.returncode == 0, made.stderr
    dump = guest.dump_raw(tmp_path / "dump.raw")
    assert guest.qmp("query-status")["status"] == "paused", "it was paused before, and stays so"
    guest.cont()
    isf = tmp_path / "stock" / "linux" / "kernel.json"
    isf.parent.mkdir(parents=True)
    for name in ("out.raw", "out.elf"):
        arguments = ("--at", "first", "-o", str(tmp_path / name), "--symbols", str(isf), "--force")
        assert pse("export", str(tmp_path / "run.pse"), *arguments).returncode == 0
    assert (tmp_path / "out.raw").read_bytes() == dump.read_bytes()

    def rows(file, *plugin, options=()):
        run = scene.vol(
            *options, "-f", str(file), *plugin, cwd=tmp_path, symbols=tmp_path / "symbols", pack=PACK
        )
        assert run.status == 0, run.errors
        assert run.rows
        return run.rows

    for plugin in (["linux.pslist"], ["linux.lsof"]):
        wanted = rows(dump, *plugin)
        assert rows(tmp_path / "run.pse", *plugin, options=("--at", "first")) == wanted, plugin
        assert rows(tmp_path / "out.elf", *plugin) == wanted, plugin
    # A cache of its own: the host's index of banners keeps tables that other runs have named.
    (tmp_path / "cache").mkdir()
    vol = [str(Path(sys.executable).with_name("vol")), "-q", "--cache-path", str(tmp_path / "cache")]
    stock = subprocess.run(
        [*vol, "-r", "csv", "-s", str(isf.parents[1]), "-f", str(tmp_path / "out.elf"), "linux.pslist"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": ""},
    )
    assert stock.returncode == 0, stock.stderr
    shown = [line.split(",") for line in stock.stdout.splitlines() if line[:2] == "0,"]
    assert [int(line[2]) for line in shown] == [row["PID"] for row in rows(dump, "linux.pslist")]


def test_any_plugin_at_an_event_and_only_where_memory_is_recorded(tmp_path):
    path = tmp_path / "run.pse"
    with trappable(GuestSpec()) as guest:
        work = (["fork-exec", "2"], ["segv", "1"], ["fork-exec", "2"])
        lines, _ = record(guest, path, "--mode", "plugin", "--keyframe-on", "exec:*/segv", work=work)
    assert replayed(path) == lines
    with open_recording(path) as recording:
        frames = [step for step in recording.steps() if step.kind == "frame"]
        assert [(step.cause, step.still) for step in frames] == [("start", True), ("event", True)]
        event = find_event(recording, "exec:*/segv").event

    def vol(*arguments):
        return scene.vol("-f", str(path), *arguments, cwd=tmp_path, symbols=tmp_path / "symbols", pack=PACK)

    there = vol("--at", "exec:*/segv", "linux.psaux")
    assert there.status == 0, there.errors
    (row,) = [row for row in there.rows if row["PID"] == event.new.pid]
    assert row["ARGS"] == "segv 1"
    assert not any(row["PID"] > event.new.pid + 1 for row in there.rows)
    refused = vol("--at", "start:fork-exec", "linux.pslist")
    assert (refused.status, refused.rows) == (1, [])
    assert "was not recorded at this event" in refused.errors
    events = vol("linux.pse")
    assert len(events.rows) == len(lines.splitlines())
    assert [row["PID"] for row in events.rows] == [
        json.loads(line)["process"]["pid"] for line in lines.splitlines()
    ]


@pytest.mark.parametrize("mode", ["asid", "plugin"])
def test_snapshots_at_events(tmp_path, mode):
    """The task list, or all of memory, as it is at an exec or an end."""
    path = tmp_path / "run.pse"
    options = ("--mode", mode, "--snapshots", "end", "--snapshots", "exec")
    with trappable(GuestSpec()) as guest:
        lines, _ = record(guest, path, *options, work=(["fork-exec", "2"],))
        whole, _ = record(
            guest, tmp_path / "whole.pse", *options, "--snapshot-memory", work=(["fork-exit", "2", "5"],)
        )
    assert replayed(path) == lines
    with open_recording(path) as recording:
        steps = list(recording.steps())
        other = [one for one in recording.events() if not isinstance(one.event, ProcessStart)]
        of_step = {one.step for one in other}
        wanted = [step for step in steps if step.trap is not None and step.id in of_step]
        assert len(wanted) >= 3
        for step in wanted:
            assert snapshot_of(recording, step).id == step.id + 1
            assert steps[step.id].cause == "snapshot"  # ids are from 1: the next one
        assert sum(step.cause == "snapshot" for step in steps) == len(wanted)
    assert replayed(tmp_path / "whole.pse") == whole
    at = ("--at", "end:fork-exit", "-o", str(tmp_path / "then.raw"))
    made = pse("export", str(tmp_path / "whole.pse"), *at)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "then.raw").stat().st_size == 512 << 20
    shown = scene.vol(
        "-f", str(tmp_path / "whole.pse"), "--at", "end:fork-exit", "linux.pslist",
        cwd=tmp_path, symbols=tmp_path / "symbols", pack=PACK,
    )  # fmt: skip
    assert shown.status == 0, shown.errors
    assert "fork-exit" in [row["COMM"] for row in shown.rows]


def test_snapshots_at_asid_changes(tmp_path):
    """Each of them, of settled asids too; not in a mode that does not trap them."""
    path = tmp_path / "run.pse"
    with trappable(GuestSpec()) as guest:
        refused = pse(
            "record", str(guest.monitor), "-o", str(path), "--mode", "plugin", "--snapshots", "asid"
        )
        assert (refused.returncode, path.exists()) == (1, False)
        assert "in asid and diff mode only" in refused.stderr
        lines, _ = record(guest, path, "--mode", "asid", "--snapshots", "asid", work=(["fork-exec", "2"],))
    assert replayed(path) == lines
    with open_recording(path) as recording:
        steps = list(recording.steps())
    changes = [step for step in steps if isinstance(step.trap, AsidChange)]
    assert any(not step.trap.moved for step in changes)
    for step in changes:
        assert steps[step.id].cause == "snapshot"  # ids are from 1: the next one


def test_at_an_event_is_as_a_dump_of_that_moment(tmp_path, monkeypatch):
    """While the trap holds the only vCPU its memory is copied, too: Volatility sees the same in both."""
    path, dump = tmp_path / "run.pse", tmp_path / "then.raw"
    with trappable(GuestSpec()) as guest, Session(str(guest.monitor)) as session:
        # Longer than a user would have it held: there are two copies to be made, and the machine may be busy.
        patient = session.choose
        monkeypatch.setattr(session, "choose", lambda mode: patient(mode, hold=30))
        frames = Frames(on=(EventFilter("exec:*/segv"),))
        with Recorder(session, path, mode="plugin", frames=frames) as recorder:
            step = recorder.steps.trap

            def copying(*arguments):
                events = step(*arguments)
                if any(isinstance(event, ProcessExec) and event.new.comm == "segv" for event in events):
                    scene.copy_ram(guest, dump)
                    assert recorder.choice.source.counters.hold_timeouts == 0
                return events

            monkeypatch.setattr(recorder.steps, "trap", copying)
            starter = threading.Timer(1.5, lambda: guest.start(["segv", "1"]))
            starter.start()
            for event in recorder.events(duration=60):
                if isinstance(event, ProcessEnd) and event.process.comm == "segv" and event.status:
                    break
    for plugin in ("linux.pslist", "linux.psaux", "linux.proc.Maps"):
        runs = [
            scene.vol(*input, plugin, cwd=tmp_path, symbols=tmp_path / "symbols", pack=PACK)
            for input in (("-f", str(dump)), ("-f", str(path), "--at", "exec:*/segv"))
        ]
        assert [run.status for run in runs] == [0, 0], runs[1].errors
        assert runs[0].rows == runs[1].rows
        assert "segv" in str(runs[0].rows[-1])


def test_a_killed_recorder_leaves_a_recording_and_a_running_guest(tmp_path):
    path = tmp_path / "run.pse"
    with trappable(GuestSpec()) as guest:
        process = subprocess.Popen(
            [*PSE, "record", str(guest.monitor), "-o", str(path), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        first = process.stdout.readline()
        assert first
        job = guest.start(["fork-exec", "200"])
        time.sleep(1.5)
        process.send_signal(signal.SIGKILL)
        live = process.stdout.read().decode().splitlines()
        process.wait()
        process.stdout.close()
        assert job.wait(120).status == 0, "the guest goes on"
        lines = replayed(path).splitlines()
        assert len(lines) > 20
        with Watch(str(guest.monitor), "--mode", "plugin") as watch:  # the plugin serves the next
            guest.run("true")
            time.sleep(0.5)
        assert watch.documents
    # What was printed and what was committed are beginnings of the same stream.
    live = [first.decode().rstrip("\n"), *live]
    short = min(len(live), len(lines))
    assert live[:short] == lines[:short]
