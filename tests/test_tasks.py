"""The task list that we read is the guest's own, in /proc, and the one that Volatility finds in a dump."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from live.watch.session import Session
from symbols.cache import Cache
from tests.guest import Guest

KERNELS = ["5.10", "6.1", "6.12", "7.2"]


def settled(guest: Guest, look):
    """(/proc's list, the look between two equal ones): a worker may come or go at any time."""
    for _ in range(20):
        before = guest.proc_list()
        guest.stop()
        seen = look()
        guest.cont()
        if guest.proc_list() == before:
            return seen, before
    raise AssertionError("the guest's process list never held still")


def rows(entries):
    return sorted((e.pid, e.ppid, e.comm, e.uid, e.kernel, e.state == "Z") for e in entries)


def ours(session):
    look = session.os.kernel.snapshot(0, "test")
    assert not look.torn
    return sorted(
        (t.identity.pid, t.ppid, t.comm.decode(), t.uid, t.kernel, t.exit_state == 0x20) for t in look.tasks
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_task_list_is_the_guests_own(boot, kernel):
    guest = boot(kernel=kernel)
    zombie = guest.start("sleep 0 & exec sleep 20")  # its child is never waited for
    guest.start(["setsid", "sleep", "20"])
    try:
        with Session(str(guest.monitor)) as session:
            seen, listed = settled(guest, lambda: ours(session))
        assert seen == rows(listed)
        assert sum(row[5] for row in seen) == 1, "one zombie"
        assert sum(row[4] for row in seen) > 30, "kernel threads are listed"
    finally:
        zombie.kill()
        guest.run("killall -9 sleep", check=False)  # setsid left the job's process group behind


def test_task_list_is_volatilitys(boot, tmp_path):
    guest = boot(kernel="6.1")
    zombie = guest.start("sleep 0 & exec sleep 60")
    try:
        with Session(str(guest.monitor)) as session:
            guest.run("true")
            guest.stop()
            seen = ours(session)
            dump = guest.dump_elf(tmp_path / "guest.elf")
    finally:
        guest.cont()
        zombie.kill()
    vol = [str(Path(sys.executable).with_name("vol")), "-q", "-r", "json"]
    vol += ["-s", str(Cache.default().directory), "-f", str(dump), "linux.pslist"]
    run = subprocess.run(vol, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    theirs = sorted((row["PID"], row["PPID"], row["COMM"], row["UID"]) for row in json.loads(run.stdout))
    assert [row[:4] for row in seen if not row[5]] == theirs
    assert sum(row[5] for row in seen) == 1, "zombies are what linux.pslist leaves out"


@pytest.mark.parametrize("ram", ["memfd", "file", "private"])
def test_task_list_is_the_same_through_every_kind_of_memory(boot, ram):
    guest = boot(ram=ram)
    with Session(str(guest.monitor)) as session:
        seen, listed = settled(guest, lambda: ours(session))
        assert (session.guest.memory.flat is None) == (ram == "private")
    assert seen == rows(listed)


def test_details_are_the_guests_own(boot):
    guest = boot()
    job = guest.start("cd /proc && exec sh -c 'sleep 30; :' name 'two words' \"$(printf 'line\\nbreak')\"")
    try:
        guest.run("true")
        ids = guest.run(
            f"cd /proc/{job.pid}; for link in exe cwd ns/pid ns/mnt ns/net ns/uts ns/ipc ns/cgroup ns/user; "
            "do readlink $link; done; cut -d' ' -f4,5,6 stat; cat /proc/sys/kernel/random/boot_id"
        ).output.split("\n")
        with Session(str(guest.monitor)) as session:
            task = next(t for t in session.os.kernel.snapshot(0, "").tasks if t.identity.pid == job.pid)
            process = session.os.processes.describe(task)
        assert (process.exe, process.cwd) == (ids[0], ids[1])
        spaces = process.namespaces
        numbers = [spaces.pid, spaces.mnt, spaces.net, spaces.uts, spaces.ipc, spaces.cgroup, spaces.user]
        assert [int(link.split("[")[1].rstrip("]")) for link in ids[2:9]] == numbers
        assert [process.ppid, process.pgid, process.sid] == [int(number) for number in ids[9].split()]
        assert process.args == ("sh", "-c", "sleep 30; :", "name", "two words", "line\nbreak")
        assert (process.uid, process.gid, process.euid, process.egid, process.ns_pid) == (0, 0, 0, 0, job.pid)
        assert (session.system.boot_id, session.system.boot_id_known) == (ids[10], True)
    finally:
        job.kill()
