"""What a user sees: events of a real guest on the command line, one clear sentence for each mistake."""

import json
import os
import signal
import time

import pytest

from tests.accuracy.compare import compare
from tests.guest.truth import TruthFork
from tests.watch import Watch, pse


@pytest.fixture
def guest(boot):
    return boot()


def lives(documents, pid):
    """(event, reason, name, exit code) of one pid, in order."""
    return [
        (d["pse"]["event"], d["pse"]["reason"], d["process"]["name"], d["process"].get("exit_code"))
        for d in documents
        if d["process"]["pid"] == pid and d["pse"]["reason"] != "running"
    ]


def test_poll_sees_what_lives_long_enough_exactly_once(guest):
    with Watch(str(guest.monitor), "--mode", "poll", "--interval", "5") as watch, guest.truth() as recorder:
        jobs = {code: guest.start(["sh", "-c", f"sleep 1; exit {code}"]) for code in (0, 3)}
        killed = guest.start(["sleep", "30"])
        time.sleep(0.5)
        killed.kill()
        for job in jobs.values():
            job.wait(check=False)
        time.sleep(0.3)
    score = compare(recorder.truth, watch.documents)
    assert not any(row.false for row in score.rows.values()), score
    ends = {
        pid: [
            event for event in lives(watch.documents, pid) if event[0] == "ProcessEnd" and event[1] != "exec"
        ]
        for pid in (killed.pid, *(job.pid for job in jobs.values()))
    }
    assert ends == {
        killed.pid: [("ProcessEnd", "signal", "sleep", 137)],
        **{job.pid: [("ProcessEnd", "exit", "sh", code)] for code, job in jobs.items()},
    }


def test_poll_counts_exactly_what_it_did_not_see(guest):
    """The kernel's counters prove it: created = seen + missed, whatever the interval."""
    options = ("--mode", "poll", "--interval", "50", "--kernel-threads")
    with guest.truth() as recorder, Watch(str(guest.monitor), *options) as watch:
        running = len(watch.documents)
        guest.run(["fork-exec", "40"])
        time.sleep(0.3)
    created = {(e.pid, e.start) for e in recorder.truth.events if isinstance(e, TruthFork)}
    assert all(d["pse"]["reason"] == "running" for d in watch.documents[:running])
    seen = {(d["process"]["pid"], d["pse"]["start_boottime"]) for d in watch.documents[running:]}
    assert len(created) >= 41
    assert watch.missed == len(created - seen)
    assert watch.missed > 0, "40 processes of a millisecond each cannot all be seen every 50 ms"


def test_json_is_ecs_and_nothing_else_is_printed(guest):
    run = pse("watch", str(guest.monitor), "--json", "--duration", "0.5", "--mode", "poll")
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert lines
    documents = [json.loads(line) for line in lines]
    first = next(d for d in documents if d["process"]["pid"] == 1)
    assert first["@timestamp"].endswith("Z")
    assert first["event"] == {"kind": "event", "category": ["process"], "type": ["info"], "action": "running"}
    assert first["process"]["executable"] == "/init"
    assert first["process"]["args"] == ["/init"]
    assert len(first["process"]["entity_id"]) == 22
    assert first["pse"]["mode"] == "poll"
    running = [d["process"]["entity_id"] for d in documents if d["event"]["action"] == "running"]
    assert len(set(running)) == len(running)


def test_count_and_plain_lines(guest):
    run = pse("watch", str(guest.monitor), "--count", "1", "--mode", "poll")
    assert run.returncode == 0
    header, row = run.stdout.splitlines()
    assert header.split() == ["Time", "Event", "Reason", "PID", "PPID", "UID", "COMM", "Exit", "ARGS"]
    assert row.split()[1:8] == ["start", "running", "1", "0", "0", "init", "-"]


def test_ctrl_c_ends_it_and_the_guest_runs_on(guest):
    with Watch(str(guest.monitor)) as watch:
        pass
    assert watch.status == 0
    assert "tasks missed" in watch.errors
    assert guest.run("echo alive").output == "alive\n"


def test_a_hostile_name_cannot_reach_the_terminal(guest):
    evil = "printf '\\033[2Jx' > /tmp/n; cp /programs/true \"/tmp/$(cat /tmp/n)\"; "
    guest.run(evil + "sleep 0.1", check=False)
    job = guest.start(
        ["sh", "-c", "exec sleep 5 \"$(printf 'a\\033]0;pwned\\007b')\" 2>/dev/null || sleep 5"]
    )
    try:
        run = pse("ps", str(guest.monitor))
    finally:
        job.kill()
    assert run.returncode == 0
    assert not {char for char in run.stdout if ord(char) < 32} - {"\n"}


def test_ps_shows_what_there_is_zombies_and_kernel_threads_included(guest):
    job = guest.start(["zombie", "3", "60000"])
    parent = job.wait_pid()
    try:
        time.sleep(0.5)
        run = pse("ps", str(guest.monitor), "--json")
        assert run.returncode == 0, run.stderr
        documents = [json.loads(line) for line in run.stdout.splitlines()]
        asked = {entry.pid for entry in guest.proc_list()}
    finally:
        job.kill()
    zombies = [d for d in documents if d["process"]["parent"]["pid"] == parent]
    assert [(d["pse"]["event"], d["process"]["exit_code"]) for d in zombies] == [("ProcessEnd", 2)] * 3
    shown = {d["process"]["pid"] for d in documents}
    # The helper that lists /proc is in one list only; kernel workers come and go.
    assert {1, 2, parent, *(d["process"]["pid"] for d in zombies)} <= shown & asked
    others = [d for d in documents if d not in zombies]
    assert {d["pse"]["reason"] for d in others} == {"running"}


def test_vms_lists_the_guest(guest):
    run = pse("vms")
    assert run.returncode == 0
    (row,) = [line.split() for line in run.stdout.splitlines() if str(guest.pid) in line.split()]
    assert row == [f"qemu-{guest.pid}", str(guest.pid), "512", "MiB", "1", "tcg", "qemu", str(guest.monitor)]


@pytest.mark.parametrize("target", ["pid", "name", "monitor"])
def test_a_target_is_a_pid_a_name_or_a_socket(guest, target):
    name = {"pid": str(guest.pid), "name": f"qemu-{guest.pid}", "monitor": str(guest.monitor)}[target]
    run = pse("watch", name, "--count", "1")
    assert (run.returncode, len(run.stdout.splitlines())) == (0, 2), run.stderr


def complaint(run, status=1):
    """The one sentence of a failed run."""
    assert run.returncode == status, (run.stdout, run.stderr)
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("pse: ")
    return line


def test_wrong_socket(tmp_path):
    assert "no" in complaint(pse("watch", str(tmp_path / "no.sock")))
    file = tmp_path / "file"
    file.write_text("x")
    complaint(pse("watch", str(file)))


def test_a_pid_that_is_no_guest():
    assert str(os.getpid()) in complaint(pse("watch", str(os.getpid())))


def test_a_name_that_nobody_has():
    assert "no-such-vm" in complaint(pse("watch", "no-such-vm"))


def test_a_guest_without_linux(boot):
    """QEMU's firmware, and no kernel yet."""
    guest = boot(paused=True)
    assert "Linux" in complaint(pse("watch", str(guest.monitor)))
    assert guest.qmp("query-status")["status"] in ("paused", "prelaunch")


def test_no_permission(guest):
    """Without the right to look into another process, as most users are."""
    prefix = ("setpriv", "--bounding-set=-sys_ptrace")
    run = pse("watch", str(guest.monitor), "--duration", "1", prefix=prefix)
    assert run.returncode == 0
    assert "poll mode" in run.stderr
    assert "memory read through QEMU's gdb stub" in run.stderr
    assert "CAP_SYS_PTRACE, for the other modes" in run.stderr


def test_the_guests_end_is_said_and_has_its_own_status(boot):
    guest = boot(fresh=True)
    with Watch(str(guest.monitor)) as watch:
        os.kill(guest.pid, signal.SIGKILL)
        assert watch.wait() == 3
    assert "has ended" in watch.errors.splitlines()[-1]


def test_the_guests_reboot_is_said(boot):
    guest = boot(fresh=True, reboot=True)
    with Watch(str(guest.monitor)) as watch:
        guest.qmp("system_reset")
        assert watch.wait() == 3
    assert "pse watch again" in watch.errors.splitlines()[-1]


def test_a_kernel_of_an_earlier_boot_in_the_same_ram_loses(boot):
    """A reset leaves the first boot's kernel in RAM; KASLR puts the second one elsewhere."""
    guest = boot(fresh=True, reboot=True)
    first = pse("watch", str(guest.monitor), "--count", "1", "--json")
    guest.qmp("system_reset")
    # Until the second kernel has booted there is none that runs, and that is what is said.
    for _ in range(120):
        second = pse("ps", str(guest.monitor), "--json")
        if second.returncode == 0:
            break
        assert "kernel" in complaint(second)
        time.sleep(1)
    starts = [json.loads(line)["process"]["start"] for line in second.stdout.splitlines()]
    assert first.returncode == 0
    assert min(starts) > json.loads(first.stdout)["process"]["start"]


def test_a_kernel_in_ram_that_no_vcpu_runs_is_not_shown(boot):
    """Right after a reset the kernel of before is there, unharmed; the vCPU is in the firmware."""
    guest = boot(fresh=True, reboot=True)
    guest.stop()
    guest.qmp("system_reset")
    time.sleep(0.5)
    run = pse("ps", str(guest.monitor))
    assert run.stdout == ""
    assert "does not run the kernel that is in its memory" in complaint(run)


def test_five_level_paging(boot):
    guest = boot(cpu_model="max")
    run = pse("ps", str(guest.monitor))
    assert run.returncode == 0, run.stderr
    (init,) = [line.split() for line in run.stdout.splitlines() if line.split()[3] == "1"]
    assert init[1:] == ["start", "running", "1", "0", "0", "init", "-", "/init"]
