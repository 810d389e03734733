"""The lab itself: what all other tests with guests lean on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guest import KERNELS, CommandFailed, Guest, GuestError, GuestSpec, GuestTimeout, TruthLost
from tests.guest.command import INTERRUPTED, run_command
from tests.guest.fixtures import Boot
from tests.guest.truth import TruthExec, TruthFork, TruthOther
from tests.guest.workloads import ends_of, workloads

ROOT = Path(__file__).parents[2]


@pytest.fixture
def guest(boot: Boot) -> Guest:
    return boot()


def test_a_command_is_one_process(guest: Guest) -> None:
    with guest.truth() as recorder:
        job = guest.start(["true"])
        job.wait()
    [process] = recorder.truth.processes()
    assert (process.tgid, process.ppid, process.comm, process.status) == (job.pid, 1, "true", 0)
    assert [run.filename for run in process.execs] == ["/programs/true"]


def test_output_and_exit_status_come_back(guest: Guest) -> None:
    result = guest.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.output, result.code) == ("out\nerr\n", 3)
    assert guest.run("kill -9 $$", check=False).code == -9


def test_binary_output_is_exact(guest: Guest) -> None:
    guest.push(bytes(range(256)) * 256, "/tmp/bytes")
    assert guest.run("cat /tmp/bytes; rm /tmp/bytes").data == bytes(range(256)) * 256


def test_a_failed_command_says_so(guest: Guest) -> None:
    with pytest.raises(CommandFailed, match=r"'no-such-program' ended with 127: .*No such file or directory"):
        guest.run(["no-such-program"])


def test_a_command_that_hangs_is_killed(guest: Guest) -> None:
    job = guest.start(["sleep", "1000"])
    with pytest.raises(GuestTimeout, match="did not finish 'sleep 1000' within"):
        job.wait(timeout=0.3)
    job.kill()
    assert job.wait(check=False).code == -signal.SIGKILL


def test_a_run_out_of_time_leaves_nothing_running(guest: Guest) -> None:
    with pytest.raises(GuestTimeout):
        guest.run("sleep 1000; sleep 1000", timeout=0.3)
    while [entry for entry in guest.proc_list() if entry.comm in ("sh", "sleep")]:
        time.sleep(0.1)


def test_ram_above_the_pci_hole(boot: Boot) -> None:
    guest = boot(memory=3072, paused=True)
    listed = re.findall(
        r"(?m)^  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio 0, ram\): ram\b", guest.hmp("info mtree -f")
    )
    last = {int(end, 16) + 1 for _, end in listed}
    assert {start + size for start, size in guest.ram_segments()} <= last
    assert guest.ram_segments() == [(0, 2 << 30), (4 << 30, 1 << 30)]


def test_fork_exit_100_is_exactly_100(guest: Guest) -> None:
    with guest.truth() as recorder:
        job = guest.start(["fork-exit", "100"])
        job.wait()
    program, *children = recorder.truth.below(job.wait_pid())
    assert (program.comm, program.status) == ("fork-exit", 0)
    assert len(children) == 100
    assert {(child.ppid, child.comm, child.status, len(child.execs)) for child in children} == {
        (program.tgid, "fork-exit", 0, 0)
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_workload_does_what_it_says(boot: Boot, kernel: str) -> None:
    """What the table says, what the parent saw and the guest's record agree, exactly, on every kernel."""
    guest = boot(kernel=kernel, cpus=2)
    release = tuple(int(part) for part in guest.kernel.release.split(".")[:2])
    todo = workloads(10, group_exit=release >= (6, 0))
    with guest.truth() as recorder:
        jobs = []
        for workload in todo:
            jobs.append(guest.start(list(workload.argv)))
            jobs[-1].wait()
    seen = {}
    for workload, job in zip(todo, jobs, strict=True):
        program, *children = recorder.truth.below(job.wait_pid())
        execs = sum(len(child.execs) for child in children)
        assert (len(program.execs), program.status) == (1, 0)
        seen[workload.name] = (len(children), execs, ends_of([child.status for child in children]))
    assert seen == {workload.name: (workload.starts, workload.execs, workload.ends) for workload in todo}


def test_threads_are_recorded_as_threads(guest: Guest) -> None:
    with guest.truth() as recorder:
        job = guest.start(["threads", "7"])
        job.wait()
    forks = [event for event in recorder.truth.events if isinstance(event, TruthFork)]
    assert sum(fork.tgid == job.pid != fork.pid for fork in forks) == 7


def test_exec_from_a_thread_keeps_the_process(guest: Guest) -> None:
    with guest.truth() as recorder:
        job = guest.start(["exec-thread", "1"])
        job.wait()
    _, child = recorder.truth.below(job.wait_pid())
    [event] = [
        event for event in recorder.truth.events if isinstance(event, TruthExec) and event.tgid == child.tgid
    ]
    assert (event.filename, event.comm, child.status) == ("/programs/true", "true", 0)


def test_further_trace_events(guest: Guest) -> None:
    with guest.truth(events=["raw_syscalls/sys_enter"]) as recorder:
        job = guest.start(["fork-exec", "1"])
        job.wait()
    _, child = recorder.truth.below(job.wait_pid())
    calls = [
        event.text
        for event in recorder.truth.events
        if isinstance(event, TruthOther) and event.by == child.tgid
    ]
    assert [text.split()[1] for text in calls] == ["273", "59", "231"]  # glibc's fork: set_robust_list


def test_an_overrun_is_an_error(guest: Guest) -> None:
    with (
        pytest.raises(TruthLost, match="record with a larger buffer_kib"),
        guest.truth(events=["raw_syscalls/sys_enter"], buffer_kib=64),
    ):
        guest.run(["syscalls", "20000"])


def test_proc_list(guest: Guest) -> None:
    sleeper = guest.start(["sleep", "1000"])
    pid = sleeper.wait_pid()
    listed = {entry.pid: entry for entry in guest.proc_list()}
    sleeper.kill()
    sleeper.wait(check=False)
    assert (listed[1].comm, listed[1].ppid, listed[1].kernel) == ("init", 0, False)
    assert (listed[2].comm, listed[2].ppid, listed[2].kernel) == ("kthreadd", 0, True)
    found = listed[pid]
    assert (found.comm, found.ppid, found.tgid, found.state, found.threads) == ("sleep", 1, pid, "S", 1)
    assert [entry.name for entry in listed.values() if not entry.kernel and entry.pid not in (1, pid)] == []


@pytest.mark.parametrize("ram", ["memfd", "file", "private"])
def test_dumps_are_the_guests_memory(boot: Boot, tmp_path: Path, ram: str) -> None:
    guest = boot(ram=ram, memory=256)
    guest.stop()
    raw = guest.dump_raw(tmp_path / "memory.raw")
    elf = guest.dump_elf(tmp_path / "memory.elf")
    guest.cont()
    assert raw.stat().st_size == guest.spec.memory << 20
    assert raw.read_bytes().count(f"Linux version {guest.kernel.release} ".encode()) > 0
    assert elf.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.guest
def test_guests_go_on_from_a_saved_state(tmp_path: Path) -> None:
    spec, state = GuestSpec(), tmp_path / "state"
    with Guest(spec) as guest:
        sleeper = guest.start(["sleep", "1000"]).wait_pid()
        guest.save(state)
    later = replace(spec, state=state)
    with Guest(later) as one, Guest(later) as two:
        for guest in (one, two):
            assert sleeper in {entry.pid for entry in guest.proc_list()}
        one.run(f"kill {sleeper}")
        while sleeper in {entry.pid for entry in one.proc_list()}:
            time.sleep(0.1)
        assert sleeper in {entry.pid for entry in two.proc_list()}


@pytest.mark.guest
def test_nothing_is_left() -> None:
    before = _leftovers()
    with Guest(GuestSpec(ram="file")) as guest:
        pid = guest.pid
        assert guest.directory.is_dir()
    assert not Path(f"/proc/{pid}").exists()
    assert not guest.directory.exists()
    assert _leftovers() == before


@pytest.mark.guest
def test_a_killed_lab_takes_its_guest_along() -> None:
    command = [sys.executable, "-m", "tests.guest", "boot"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout
        shown = dict(lab.stdout.readline().split(maxsplit=1) for _ in range(4))
        pid = int(shown["pid"])
        os.kill(pid, 0)
        lab.kill()
    assert _gone(pid)
    with Guest(GuestSpec(paused=True)):  # the next guest sweeps what the killed one could not
        assert not Path(shown["monitor"].strip()).parent.exists()


@pytest.mark.guest
def test_an_interrupted_lab_cleans_up() -> None:
    command = [sys.executable, "-m", "tests.guest", "boot"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout
        shown = dict(lab.stdout.readline().split(maxsplit=1) for _ in range(4))
        lab.send_signal(signal.SIGINT)
        assert lab.wait(30) == 0
    assert not Path(f"/proc/{int(shown['pid'])}").exists()
    assert not Path(shown["monitor"].strip()).parent.exists()


@pytest.mark.guest
def test_a_benchmark_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "tests.bench.floor", "--rounds", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment) as bench:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("pse-bench-*/state")):  # a guest's memory
            assert bench.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        bench.terminate()
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == INTERRUPTED
    assert said.endswith("ended before it was done\n")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_lab_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise GuestError("it is gone; look for it")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match=r"^lab: it is gone; look for it$"):
        run_command(fails)


@pytest.mark.guest
def test_a_panic_is_said() -> None:
    with (
        Guest(GuestSpec()) as guest,
        pytest.raises(GuestError, match=r"kernel panicked \(sysrq triggered crash\)"),
    ):
        guest.run("echo c > /proc/sysrq-trigger")


@pytest.mark.guest
def test_a_guest_that_cannot_boot_says_why() -> None:
    with pytest.raises(GuestError, match=r"kernel panicked \(VFS: Unable to mount root fs"):
        Guest(GuestSpec(append="rdinit=/nonexistent init=/nonexistent")).__enter__()


@pytest.mark.guest
def test_a_qemu_that_cannot_start_says_why() -> None:
    with pytest.raises(GuestError, match="unable to find CPU model 'no-such-cpu'"):
        Guest(GuestSpec(cpu_model="no-such-cpu")).__enter__()


def test_qemu_7_2_boots_too(boot: Boot) -> None:
    guest = boot(qemu="7.2")
    assert guest.qmp("query-version")["qemu"]["major"] == 7
    assert guest.run("uname -r").output.strip() == guest.kernel.release


def _leftovers() -> set[str]:
    """But for sockets of plugins, which tests that run beside this one make (`tests.hypervisors.sockets`)."""
    found = {path.name for place in ("/dev/shm", "/tmp") for path in Path(place).glob("*qemu*")}
    return {name for name in found if not name.startswith("pse-test-")}


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
