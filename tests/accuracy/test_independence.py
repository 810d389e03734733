"""Against what shares nothing with us: the scheduler's events, what a parent saw, the guest's own /proc."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest

from tests.accuracy.campaign import quiet
from tests.accuracy.run import trappable
from tests.guest import GuestSpec
from tests.guest.truth import TruthExec, TruthOther
from tests.watch import Watch

pytestmark = pytest.mark.guest
EVENTS = ("sched/sched_process_fork", "sched/sched_process_exit")
SINGLE = (
    "fork-exit",
    "fork-exec",
    "vfork-exit",
    "vfork-exec",
    "spawn",
    "clone-parent",
    "exec-fail",
    "daemon",
)
"""Workloads without threads: the scheduler's events do not tell threads from processes."""


OTHERS = [pytest.param(kernel, marks=pytest.mark.deep) for kernel in ("5.10", "6.1", "6.12")]


@pytest.fixture(scope="module", params=["7.2", *OTHERS])
def guest(request):
    with trappable(GuestSpec(kernel=request.param)) as guest:
        yield guest


def test_as_many_as_the_scheduler_says(guest):
    with (
        Watch(str(guest.monitor), "--mode", "plugin", "--kernel-threads") as watch,
        guest.truth(events=EVENTS) as recorder,
    ):
        first = len(watch.documents)
        for name in (*SINGLE, "brief", "storm"):
            guest.start([name, "10"] if name != "storm" else [name, "3", "3"]).wait(60)
        quiet(watch)
        documents = watch.documents[first:]
    others = [event for event in recorder.truth.events if isinstance(event, TruthOther)]
    forked = Counter(int(re.search(r"child_pid=(\d+)", e.text)[1]) for e in others if "fork" in e.name)
    exited = Counter(int(re.search(r" pid=(\d+)", e.text)[1]) for e in others if "exit" in e.name)
    assert Counter(d["process"]["pid"] for d in documents if d["pse"]["reason"] == "fork") == forked
    ended = [d for d in documents if d["pse"]["event"] == "ProcessEnd" and d["pse"]["reason"] != "exec"]
    assert Counter(d["process"]["pid"] for d in ended) == exited
    assert sum(forked.values()) > 150
    # The file name of an exec comes from sched_process_exec.
    execs = [event for event in recorder.truth.events if isinstance(event, TruthExec)]
    assert all(event.filename for event in execs)
    assert sum(d["pse"]["event"] == "ProcessExec" for d in documents) == len(execs)


def test_a_parent_saw_the_same_exit_codes(guest):
    script = (
        'for c in 0 1 7 127 128 255; do sh -c "exit $c" & p=$!; wait $p; echo $p $?; done;'
        'for s in 1 2 6 9 11 13 15; do sh -c "kill -$s \\$\\$; sleep 1" & p=$!; wait $p; echo $p $?; done'
    )
    with Watch(str(guest.monitor), "--mode", "plugin") as watch:
        output = guest.run(["sh", "-c", f"({script}) 2>/dev/null"]).output
        quiet(watch)
    told = dict(map(int, line.split()) for line in output.splitlines())
    assert len(told) == 13
    ends = [d["process"] for d in watch.documents if d["pse"]["reason"] in ("exit", "signal")]
    assert {p["pid"]: p["exit_code"] for p in ends if p["pid"] in told} == told


RUN = {
    "plain": "cd /sys/kernel; exec sh -c 'read x < /tmp/fifo' 'a b' '' c",
    "nobody": "cd /; exec as-nobody /bin/sleep 100",
    "namespaces": "exec unshare -m -u -i -n sleep 100",
    "cgroup": "cd /sys/fs/cgroup; mkdir -p a/box; echo $$ > a/box/cgroup.procs; exec sleep 100",
    "chroot": "exec chroot / sleep 100",
    "deleted": "cp /bin/busybox /tmp/sleep; (usleep 300000; rm /tmp/sleep) & exec /tmp/sleep 100",
}
PROC = (
    "cd /proc/{pid}; cat cmdline | tr '\\0' '\\n'; echo; echo =; readlink exe; readlink cwd; "
    "cat comm cgroup; "
    "cut -d' ' -f4-6 stat; grep -E '^(Uid|Gid|NSpid):' status; "
    "for n in pid mnt net uts ipc cgroup user; do readlink ns/$n; done"
)


@pytest.mark.parametrize("name", RUN)
def test_every_field_is_what_proc_says(guest, name):
    with Watch(str(guest.monitor), "--mode", "plugin") as watch:
        guest.run("[ -p /tmp/fifo ] || mkfifo /tmp/fifo")
        job = guest.start(["sh", "-c", RUN[name]])
        pid = job.wait_pid()
        time.sleep(1)
        quiet(watch)
        argv, rest = guest.run(PROC.format(pid=pid)).output.split("\n=\n")
        job.kill()
        job.wait(check=False)
        quiet(watch)
    lines = rest.splitlines()
    exe, cwd, comm, cgroup, stat, uid, gid, nspid, *namespaces = lines
    start = [
        d for d in watch.documents if d["process"]["pid"] == pid and d["pse"]["event"] == "ProcessStart"
    ][-1]
    process, own = start["process"], start["pse"]
    assert process["args"] == argv.removesuffix("\n").split("\n")[: len(process["args"])]
    assert len(process["args"]) == argv.count("\n")
    # busybox's unshare runs its sleep as /proc/self/exe, a file in the mount namespace that it has left.
    mark = "(unreachable)" if name == "namespaces" else ""
    path = mark + exe.removesuffix(" (deleted)")
    assert (process["executable"], process["working_directory"]) == (path, cwd)
    assert process["name"] in (comm, "exe")  # busybox runs /proc/self/exe, and then renames itself
    assert own["cgroup"] == cgroup.removeprefix("0::")
    ppid, pgid, sid = map(int, stat.split())
    assert process["parent"]["pid"] == ppid
    assert (process["group_leader"]["pid"], process["session_leader"]["pid"]) == (pgid, sid)
    assert (process["real_user"]["id"], start["user"]["id"]) == tuple(uid.split()[1:3])
    assert (process["real_group"]["id"], start["group"]["id"]) == tuple(gid.split()[1:3])
    assert own["ns_pid"] == int(nspid.split()[-1])
    found = {line.split(":")[0]: int(line.split("[")[1].rstrip("]")) for line in namespaces}
    assert own["namespaces"] == found
    (end,) = [d for d in watch.documents if d["process"]["pid"] == pid and d["pse"]["reason"] == "signal"]
    assert (end["pse"]["signal"]["number"], end["process"]["name"]) == (9, comm)
