"""Times, command lines, identity and exit codes, as a real guest has them."""

from __future__ import annotations

import datetime
import json
import time

import pytest

from live.core.errors import PseError
from live.core.text import unescaped
from live.output.ecs import entity_id
from live.watch.session import Session
from tests.accuracy.campaign import quiet
from tests.accuracy.run import trappable
from tests.guest import GuestSpec
from tests.watch import Watch, pse

pytestmark = pytest.mark.guest
OTHERS = [pytest.param(kernel, marks=pytest.mark.deep) for kernel in ("5.10", "6.12", "7.2")]


@pytest.fixture(scope="module", params=["6.1", "6.12-rt", *OTHERS])
def guest(request):
    with trappable(GuestSpec(kernel=request.param)) as guest:
        yield guest


def seconds(text):
    """Of an ISO 8601 time, since the epoch."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def settle(watch, mode):
    """Until what has happened was shown."""
    if mode == "plugin":
        quiet(watch)
    else:
        time.sleep(0.5)


def ends(watch, pid):
    return [d for d in watch.documents if d["process"]["pid"] == pid and d["event"]["type"] == ["end"]]


@pytest.mark.parametrize("mode", ["plugin", "poll"])
def test_all_times_of_a_process_are_by_the_guests_clock(guest, mode):
    """The guest's wall clock is some days away from the host's; its boot clock knows nothing of that."""
    days = 40 * 86400
    guest.run(f"date -s @{int(time.time()) - days}")
    with Watch(str(guest.monitor), "--mode", mode) as watch:
        job = guest.start(["sh", "-c", "sleep 0.7; date +%s; cat /proc/uptime"])
        wall, uptime, _ = job.wait().output.split()
        settle(watch, mode)
    (end,) = ends(watch, job.pid)
    process, own = end["process"], end["pse"]
    lived = end["event"]["duration"]
    assert 0.7e9 < lived < 2e9
    assert own["boottime"] - own["start_boottime"] == lived
    assert seconds(process["end"]) - seconds(process["start"]) == pytest.approx(lived / 1e9, abs=2e-6)
    assert own["boottime"] / 1e9 == pytest.approx(float(uptime), abs=0.1)
    assert -0.1 < seconds(process["end"]) - int(wall) < 1.2
    assert seconds(end["@timestamp"]) - seconds(process["end"]) == pytest.approx(days, abs=3)


@pytest.mark.parametrize("mode", ["plugin", "poll"])
def test_the_guests_own_tracer_has_the_same_times(guest, mode):
    """Many live for less than a timer tick (4 ms), which is how often the kernel writes its clock down."""
    with Watch(str(guest.monitor), "--mode", mode) as watch, guest.truth() as recorder:
        guest.run(["fork-exit", "60"] if mode == "plugin" else "for i in 1 2 3 4 5; do sleep 0.1; done")
        settle(watch, mode)
    died = {d["process"]["pid"]: d for d in watch.documents if "end" in d["event"]["type"]}
    true = [one for one in recorder.truth.processes() if one.ended and one.forked and one.tgid in died]
    assert len(true) >= (60 if mode == "plugin" else 5)
    off = []
    for one in true:
        document = died[one.tgid]
        assert document["pse"]["start_boottime"] == one.start
        off.append((document["pse"]["boottime"] - one.ended.ts) / 1e6)
        assert off[-1] <= document["pse"]["late_ms"] + 20
    off.sort(key=abs)
    print(f"{mode}: off by {off[len(off) // 2]:+.3f} ms (median), {off[-1]:+.3f} ms at most")
    assert abs(off[len(off) // 2]) < (2 if mode == "plugin" else 20)


BOOT_ID = "/proc/sys/kernel/random/boot_id"


def test_two_observers_of_one_boot_agree_whenever_they_came(boot):
    """The kernel makes its boot id when somebody first asks for it, and a host gets its name late."""
    guest = boot(kernel="6.12", fresh=True)
    with Watch(str(guest.monitor), "--mode", "poll") as early:
        assert "boot" not in early.documents[0]["host"]
        boot_id = guest.run(f"hostname web-7; cat {BOOT_ID}").output.strip()
        time.sleep(0.3)
        with Watch(str(guest.monitor), "--mode", "poll") as late:
            job = guest.start(["sleep", "0.3"])
            job.wait()
            time.sleep(0.3)
    for watch in (early, late):
        (end,) = ends(watch, job.pid)
        assert (end["host"]["hostname"], end["host"]["boot"]["id"]) == ("web-7", boot_id)
    first, second = (
        {d["process"]["pid"]: d["process"]["entity_id"] for d in w.documents} for w in (early, late)
    )
    common = first.keys() & second.keys()
    assert {1, job.pid} <= common
    assert {first[pid] for pid in common} == {second[pid] for pid in common}


def test_a_recording_from_before_the_host_had_a_name_tells_it_from_then_on(boot, tmp_path):
    guest = boot(kernel="6.12", fresh=True)
    path = tmp_path / "early.pse"
    with Watch(str(guest.monitor), "--mode", "poll", "-o", str(path), verb="record") as record:
        boot_id = guest.run(f"hostname web-8; cat {BOOT_ID}").output.strip()
        job = guest.start(["sleep", "0.3"])
        job.wait()
        time.sleep(0.3)
    (end,) = ends(record, job.pid)
    assert (end["host"]["hostname"], end["host"]["boot"]["id"]) == ("web-8", boot_id)
    replayed = pse("replay", str(path), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert [json.loads(line) for line in replayed.stdout.splitlines()] == record.documents


def test_every_moment_of_a_boot_gives_the_same_identity_or_a_sentence(boot):
    """From QEMU's first instruction on: who can be attached to is the same boot each time."""
    guest = boot(GuestSpec(kernel="6.12", paused=True))
    guest.cont()
    keys, said, tries = [], [], 0
    until = time.monotonic() + 60
    while time.monotonic() < until and len(keys) < 25:
        tries += 1
        try:
            with Session(str(guest.monitor)) as session:
                first = [task for task in session.os.snapshot(0, "").tasks if task.identity.pid == 1]
                keys.append(entity_id(session.system, first[0].identity))
        except PseError as error:
            said.append(str(error))
    guest.wait_ready()
    with Session(str(guest.monitor)) as session:
        identity = next(task.identity for task in session.os.snapshot(0, "").tasks if task.identity.pid == 1)
        assert {*keys} == {entity_id(session.system, identity)}
    print(f"{tries} attempts; {len(keys)} attached; {len({*said})} sentences: {sorted({*said})}")
    assert not any("BTF" in sentence for sentence in said)


def test_a_poll_never_takes_the_leaders_exit_code_for_the_groups(guest):
    """The leader exits with 5, another thread ends the process with 6, and nobody leaves it as a zombie."""
    with Watch(str(guest.monitor), "--mode", "poll") as watch:
        job = guest.start(["leader-first", "10"])
        job.wait()
        settle(watch, "poll")
    found = [
        (d["pse"]["reason"], d["process"].get("exit_code"))
        for d in watch.documents
        if d["event"]["type"] == ["end"] and d["process"]["parent"]["pid"] == job.pid
    ]
    print(found)
    assert len(found) == 10
    assert {*found} <= {("exit", 6), ("gone", None)}
    assert ("exit", 6) in found


@pytest.mark.parametrize("length", [0, 20, 200])
def test_the_command_line_is_what_proc_says(guest, length):
    """A title of 200 bytes goes on into the environment, as those of nginx, sshd and postgres do."""
    text = f"exec env -i A={'a' * 300} /programs/settitle {length} $(printf 'a\\377b') 'a\\xffb'"
    job = guest.start(["sh", "-c", text])
    time.sleep(0.5)
    try:
        true = bytes.fromhex(guest.run(f"od -An -v -tx1 /proc/{job.pid}/cmdline").output)
        shown = pse("ps", str(guest.monitor), "--json")
        short = pse("ps", str(guest.monitor), "--json", "--max-args", "15")
    finally:
        job.kill()
        job.wait(check=False)
    (process,) = [d for d in map(json.loads, shown.stdout.splitlines()) if d["process"]["pid"] == job.pid]
    args = [unescaped(one) for one in process["process"]["args"]]
    assert b"\0".join(args) == true.removesuffix(b"\0")
    assert "args_truncated" not in process["pse"]
    if length == 200:
        assert len(true) == length + 1
    elif length == 0:
        assert args[2:] == [b"a\xffb", b"a\\xffb"]
    (process,) = [d for d in map(json.loads, short.stdout.splitlines()) if d["process"]["pid"] == job.pid]
    assert b"\0".join(unescaped(one) for one in process["process"]["args"]) == true[:15].removesuffix(b"\0")
    assert process["pse"]["args_truncated"] is True


@pytest.mark.parametrize("mode", ["plugin", "poll"])
def test_a_watch_goes_on_when_the_guest_goes_back_to_a_snapshot(tmp_path, mode):
    """loadvm: as many forks as some time ago, and the same boot."""
    with trappable(GuestSpec(kernel="6.12")) as guest:
        stays, ends_later = guest.start(["sleep", "1000"]), guest.start(["sleep", "1001"])
        name = snapshot_of(guest, tmp_path)
        with Watch(str(guest.monitor), "--mode", mode) as watch:
            ends_later.kill()
            ends_later.wait(check=False)
            guest.run(["fork-exec", "20"])
            new = guest.start(["sleep", "1002"])
            settle(watch, mode)
            before = len(watch.documents)
            job(guest, "snapshot-load", tag=name, vmstate="disk", devices=["disk"])
            time.sleep(1)
            assert watch.status is None, watch.errors
            after = guest.start(["sleep", "0.5"])
            after.wait()
            settle(watch, mode)
    assert "started anew" not in watch.errors
    later = watch.documents[before:]
    shown = [(d["process"]["pid"], d["pse"]["event"], d["pse"]["reason"], d["pse"]["trigger"]) for d in later]
    print(shown)
    assert (new.pid, "ProcessEnd", "gone") in [one[:3] for one in shown]
    assert (ends_later.pid, "ProcessStart", "running") in [one[:3] for one in shown]
    assert stays.pid not in {one[0] for one in shown}
    assert [one[1:3] for one in shown if one[0] == after.pid][-1] == ("ProcessEnd", "exit")


def job(guest, command, **arguments):
    """Run a QMP job to its end."""
    guest.qmp(command, job_id="job", **arguments)
    for _ in range(600):
        (state,) = guest.qmp("query-jobs")
        if state["status"] == "concluded":
            break
        time.sleep(0.05)
    assert "error" not in state, state
    guest.qmp("job-dismiss", id="job")


def snapshot_of(guest, directory):
    """Have QEMU write the guest's state into a new image; the name of the snapshot."""
    raw = str(directory / "disk.qcow2")
    job(guest, "blockdev-create", options={"driver": "file", "filename": raw, "size": 0})
    guest.qmp("blockdev-add", driver="file", node_name="file", filename=raw)
    job(guest, "blockdev-create", options={"driver": "qcow2", "file": "file", "size": 1 << 20})
    guest.qmp("blockdev-add", driver="qcow2", node_name="disk", file="file")
    job(guest, "snapshot-save", tag="before", vmstate="disk", devices=["disk"])
    return "before"


def test_the_year_is_right_where_locks_are_larger(guest):
    """PREEMPT_RT: 1913, when the place of the kernel's clock was a constant."""
    now = int(guest.run("date +%s").output)
    shown = pse("ps", str(guest.monitor), "--json")
    documents = [json.loads(line) for line in shown.stdout.splitlines()]
    uptime = float(guest.run("cat /proc/uptime").output.split()[0])
    assert all(-2 < now - seconds(d["process"]["start"]) < uptime + 2 for d in documents)
