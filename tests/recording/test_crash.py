"""Killed recorders, full disks: what was committed replays."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from live.core.errors import TargetError
from live.recording import sink
from live.recording.opening import open_recording
from live.recording.recover import journal_of
from live.recording.replay import Replay
from tests.recording.build import Lab
from tests.recording.hostile import consume

CHILD = """
import pathlib, sys, time
from live.recording import sink
sink.COMMIT_S = 0.002
from tests.recording.build import Lab
lab = Lab(pathlib.Path(sys.argv[1]))
lab.guest.task(1, b"init")
lab.snapshot("attach")
sink_ = lab.writer._sink
while sink_._queued or sink_._uncommitted:
    time.sleep(0.01)
print("ready", flush=True)
task = lab.fork(2)
while True:
    lab.exec(task, b"tool", args=(b"x",))
    lab.guest._free = min(lab.guest._free, 0x180000)
"""


@pytest.mark.slow
def test_after_sigkill_everything_up_to_the_last_commit_replays(tmp_path):
    counts, journals = [], 0
    for attempt in range(12):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, cwd=os.getcwd()
        )
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.013 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        path = directory / "run.pse"
        journals += journal_of(path).exists()
        assert consume(path) is None
        with open_recording(path) as recording:
            assert recording.end() is None
            counts.append(recording.count("event"))
    assert min(counts) >= 1
    print(f"{journals} of 12 were killed within a commit; events: {counts}")


def test_a_commit_cut_short_is_rolled_back_on_a_copy(tmp_path):
    lab = Lab(tmp_path)
    lab.guest.task(1, b"init")
    lab.snapshot()
    lab.run(10)
    lab.writer.close()
    torn = tmp_path / "torn"
    torn.mkdir()
    connection = sqlite3.connect(lab.path, isolation_level=None)
    # Half a commit: pages already overwritten in the file, their originals in the journal.
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN")
    connection.execute("UPDATE event SET data = zeroblob(length(data) * 3)")
    connection.execute("UPDATE step SET cause = 'nonsense', kind = 'nonsense'")
    for name in (lab.path, journal_of(lab.path)):
        shutil.copy(name, torn / name.name)
    connection.rollback()
    connection.close()
    path = torn / "run.pse"
    before = path.read_bytes(), journal_of(path).read_bytes()
    assert before[0] != lab.path.read_bytes()
    assert consume(path) is None
    with open_recording(path) as recording:
        assert [event for _, event in Replay(recording).events()] == lab.live
    assert (path.read_bytes(), journal_of(path).read_bytes()) == before, "evidence is not changed"


@pytest.mark.parametrize("junk", [b"junk" * 300, b"\xd9\xd5\x05\xf9 \xa1c\xd7" + b"\xff" * 2000, b"\1"])
def test_a_journal_that_is_none(tmp_path, junk):
    lab = Lab(tmp_path)
    lab.guest.task(1)
    lab.snapshot()
    lab.writer.close()
    journal_of(lab.path).write_bytes(junk)
    error = consume(lab.path)
    assert error is None or "damaged" in str(error)
    assert journal_of(lab.path).read_bytes() == junk


def test_a_full_disk_ends_the_recording_and_keeps_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sink, "COMMIT_S", 0.0)
    lab = Lab(tmp_path)
    lab.guest.task(1, b"init")
    lab.snapshot()
    deadline = time.monotonic() + 10
    while not lab.writer._sink.commits:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    connection = lab.writer._sink._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")

    def record_on():
        for first in range(100, 1000, 2):
            lab.guest._free = 0x80000
            lab.run(2, first)
            time.sleep(0.005)

    with pytest.raises(TargetError, match="full") as full:
        record_on()
    assert "can be replayed" in str(full.value)
    with pytest.raises(TargetError):
        lab.writer.close()
    assert consume(lab.path) is None
    with open_recording(lab.path) as recording:
        events = [one.event for one in recording.events()]
    assert events
    assert events == lab.live[: len(events)]


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "run.pse"
    path.write_text("precious")
    with pytest.raises(TargetError, match="exists already"):
        Lab(tmp_path)
    assert path.read_text() == "precious"
    lab = Lab(tmp_path, force=True)
    lab.writer.close()
    assert open_recording(path).count("step") == 1
    os.unlink(path)
    path.mkdir()
    with pytest.raises(TargetError, match="no ordinary file"):
        Lab(tmp_path, force=True)
    with pytest.raises(TargetError):
        Lab(tmp_path, path=tmp_path / "absent" / "run.pse")


def test_a_stale_journal_is_not_taken_for_ours(tmp_path):
    journal_of(tmp_path / "run.pse").write_bytes(b"x")
    with pytest.raises(TargetError, match="left of another recording"):
        Lab(tmp_path)


def test_a_recording_is_read_while_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sink, "COMMIT_S", 0.0)
    lab = Lab(tmp_path)
    lab.guest.task(1)
    lab.snapshot()
    counts = []
    for first in range(100, 120, 2):
        lab.run(2, first)
        with open_recording(lab.path) as recording:
            counts.append(len(list(recording.events())))
    lab.writer.close()
    assert counts == sorted(counts)
    assert consume(lab.path) is None


def test_a_recording_is_opened_before_its_first_step(tmp_path):
    lab = Lab(tmp_path)
    with open_recording(lab.path) as recording:
        lab.guest.task(1)
        lab.snapshot()
        lab.run(2, 100)
        lab.writer.close()
        assert [one.event for one in recording.events()] == lab.live
        assert len(lab.live) > 1
