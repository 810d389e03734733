"""Where peers, and we at first, saw too much or too little: each with exact counts, in plugin mode."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.accuracy import compare as comparison
from tests.accuracy.campaign import broken_invariants, quiet
from tests.accuracy.compare import compare
from tests.accuracy.run import trappable
from tests.bench.parts import company
from tests.guest import GuestSpec
from tests.guest.truth import TruthFork
from tests.watch import Watch

pytestmark = pytest.mark.guest
OPTIONS = ("--mode", "plugin", "--kernel-threads")


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.deep), 4], ids=["1cpu", "4cpus"])
def guest(request):
    with trappable(GuestSpec(cpus=request.param)) as guest:
        yield guest


def watched(guest, *commands):
    """(record, documents, watch) of commands that are run one after another."""
    with Watch(str(guest.monitor), *OPTIONS) as watch, guest.truth(buffer_kib=16384) as recorder:
        for command in commands:
            guest.start(command).wait(120, check=False)
        quiet(watch)
    return recorder.truth, watch.documents, watch


def exact(guest, *commands):
    """Like `watched`, and everything must be exact."""
    truth, documents, watch = watched(guest, *commands)
    score = compare(truth, documents)
    assert score.exact, str(score)
    assert broken_invariants(documents) == []
    assert watch.missed == 0
    return truth, documents, watch


def test_a_watcher_that_is_stopped_loses_and_counts_it_exactly(guest):
    """SIGSTOP for 3 s: holds run out, the guest goes on, and what it did meanwhile is counted."""
    with guest.truth(buffer_kib=16384) as recorder, Watch(str(guest.monitor), *OPTIONS) as watch:
        running = {identity(document) for document in watch.documents}
        job = guest.start(["fork-exit", "3000"])
        time.sleep(0.5)
        os.kill(watch.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(watch.pid, signal.SIGCONT)
        job.wait(120)
        quiet(watch)
        guest.run(["fork-exec", "20"])
        quiet(watch)
    created = {(e.pid, e.start) for e in recorder.truth.events if isinstance(e, TruthFork)} - running
    seen = {identity(document) for document in watch.documents} - running
    assert seen <= created
    assert watch.missed == len(created - seen) > 20
    assert broken_invariants(watch.documents) == []
    score = compare(recorder.truth, watch.documents)
    assert not any(row.false for row in score.rows.values()), str(score)
    # What it missed of a process that it knew of is the end, or how that was; never another one's.
    assert sum(row.wrong for row in score.rows.values()) <= guest.spec.cpus, str(score)
    last = [d for d in watch.documents if d["pse"]["reason"] == "exit" and d["process"]["name"] == "true"]
    assert len(last) == 20, "it did not find its way back"


def test_a_machine_that_stands_still_makes_nobody_late(guest):
    """Watcher and QEMU get no CPU for 2 s, as when the machine below them is suspended, with a vCPU held."""
    with guest.truth(buffer_kib=16384) as recorder, Watch(str(guest.monitor), *OPTIONS) as watch:
        job = guest.start(["fork-exec", "300"])
        time.sleep(0.3)
        for _ in range(3):
            stood = (watch.pid, guest.pid)
            for pid in stood:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.05)  # the guest runs into its next trap
            time.sleep(2)
            for pid in reversed(stood):
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
        job.wait(120)
        quiet(watch)
    score = compare(recorder.truth, watch.documents)
    assert score.exact, str(score)
    assert watch.missed == 0


@pytest.mark.deep  # It takes the CPUs from the test that runs beside it, and poll mode is not meant for that.
def test_a_host_that_is_busy_makes_nobody_late():
    """Two others a CPU compute.  Between the bursts the watcher sleeps, and has to get a CPU again."""
    bursts = ["sh", "-c", "for i in $(seq 40); do /bin/true; /bin/true; sleep 0.03; done"]
    # One vCPU, as the watcher does not look for traps where vCPUs need every CPU.
    with trappable(GuestSpec()) as guest, company(2 * len(os.sched_getaffinity(0))):
        _, _, watch = exact(guest, bursts, ["fork-exec", "200"])
    assert "too late" not in watch.errors


@pytest.mark.deep  # As above.
def test_a_watcher_that_gets_no_cpu_on_a_busy_host_is_waited_for():
    """For 3 s its host has better things to do: it is ready to run, so the limit of a hold is not counted."""
    cpus = os.sched_getaffinity(0)
    one = {min(cpus)}
    with (
        trappable(GuestSpec()) as guest,
        guest.truth(buffer_kib=16384) as recorder,
        Watch(str(guest.monitor), *OPTIONS) as watch,
    ):
        job = guest.start(["fork-exec", "1000"])
        time.sleep(0.3)
        with company(16, on=one):
            os.sched_setaffinity(watch.pid, one)
            os.sched_setscheduler(watch.pid, os.SCHED_IDLE, os.sched_param(0))
            time.sleep(3)
        os.sched_setscheduler(watch.pid, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(watch.pid, cpus)
        job.wait(120)
        quiet(watch)
    score = compare(recorder.truth, watch.documents)
    assert score.exact, str(score)
    assert watch.missed == 0
    assert "too late" not in watch.errors
    # Longer than the limit, or this test shows nothing.
    assert max(d["pse"]["late_ms"] for d in watch.documents if d["pse"]["reason"] != "running") > 1500


def images(documents, name):
    """Documents of starts by exec with that name."""
    starts = [d for d in documents if (d["pse"]["event"], d["pse"]["reason"]) == ("ProcessStart", "exec")]
    return [d for d in starts if d["process"]["name"] == name]


def test_the_first_process_of_a_pid_namespace_execs(guest):
    _, documents, _ = exact(guest, *[["unshare", "-p", "-f", "/programs/true"]] * 5)
    found = images(documents, "true")
    assert [d["pse"]["ns_pid"] for d in found] == [1] * 5
    (own,) = {d["pse"]["namespaces"]["pid"] for d in documents if d["process"]["pid"] == 1} or {0xEFFFFFFC}
    assert all(d["pse"]["namespaces"]["pid"] != own for d in found)
    assert all(d["process"]["pid"] > 1 for d in found)


def test_a_core_dump_into_a_pipe_makes_the_kernel_start_a_process(guest):
    """A kernel worker becomes a process (call_usermodehelper) for each."""
    guest.run("echo '|/programs/true %p' > /proc/sys/kernel/core_pattern")
    try:
        _, documents, _ = exact(guest, ["sh", "-c", "ulimit -c unlimited; segv 1; segv 1; segv 1"])
    finally:
        guest.run("echo core > /proc/sys/kernel/core_pattern")
    helpers = [d for d in images(documents, "true") if len(d["process"]["args"]) == 2]
    dead = [d for d in documents if d["pse"].get("signal", {}).get("number") == signal.SIGSEGV]
    assert (len(helpers), len(dead)) == (3, 3)
    assert {d["process"]["args"][1] for d in helpers} == {str(d["process"]["pid"]) for d in dead}
    assert {d["process"]["executable"] for d in helpers} == {"/programs/true"}


def test_without_a_core_file_there_is_no_core_flag(guest):
    command = "ulimit -c 0; sh -c 'kill -SEGV $$'; sh -c 'kill -ABRT $$'; sh -c 'kill -USR1 $$'; :"
    _, documents, _ = exact(guest, ["sh", "-c", command])
    dead = [d["pse"] for d in documents if "signal" in d["pse"]]
    assert [(own["signal"]["number"], own["core"]) for own in dead] == [(11, False), (6, False), (10, False)]


def test_a_module_loader_is_a_process(guest):
    guest.run("echo /programs/true > /proc/sys/kernel/modprobe")
    _, documents, _ = exact(guest, ["sh", "-c", "for i in 1 2 3; do mount -t nosuch$i none /tmp; done; :"])
    loaders = [d for d in images(documents, "true") if "fs-nosuch" in d["process"]["args"][-1]]
    assert len(loaders) == 3


def test_killed_at_any_moment_of_exec(guest):
    line = (
        "for i in $(seq 60); do exec-chain 40 & usleep $((i * 700)); kill -9 $!; wait $!; done 2>/dev/null;"
        "for i in $(seq 40); do exec-thread 1 & usleep $((i * 500)); kill -9 $!; wait $!; done 2>/dev/null; "
        "killall -9 exec-chain exec-thread; usleep 200000; :"
    )
    _, documents, _ = exact(guest, ["sh", "-c", line])
    signals = [d for d in documents if d["pse"].get("signal", {}).get("number") == 9]
    assert len(signals) > 20


def test_everything_at_once(guest):
    """Jobs side by side: threads exit while others exec, processes die while another vCPU is held."""
    programs = ("fork-exec 40", "vfork-exec 40", "exec-thread 30", "killed 30", "thread-exit-group 30")
    programs += ("threads 100", "storm 3 4", "exec-retry 30", "daemon 20", "exec-fail 30", "brief 60")
    truth, _, _ = exact(guest, ["sh", "-c", "".join(f"{program} & " for program in programs) + "wait"])
    assert len(truth.processes()) > 400


def test_pids_and_task_addresses_are_used_again(guest):
    _, documents, _ = exact(guest, ["pid-reuse", "900", "400"])
    ended = [d for d in documents if d["pse"]["reason"] == "exit"]
    assert len({d["process"]["pid"] for d in ended}) < len(ended), "no pid came around again"
    assert len({d["pse"]["task"] for d in ended}) < len(ended), "no task_struct came around again"
    assert len({identity(d) for d in ended}) == len(ended)


def test_attached_in_the_middle_of_a_storm(guest):
    """What runs is announced; from the first event on, everything that the guest does is seen, once."""
    with guest.truth(buffer_kib=16384) as recorder:
        programs = (
            "fork-exec 1200",
            "vfork-exec 800",
            "exec-thread 300",
            "threads 1000",
            "storm 3 5",
            "exec-chain 1000",
        )
        job = guest.start(["sh", "-c", "".join(f"{program} & " for program in programs) + "wait"])
        time.sleep(0.5)
        with Watch(str(guest.monitor), *OPTIONS) as watch:
            job.wait(120)
            quiet(watch)
    assert broken_invariants(watch.documents) == []
    assert watch.missed == 0
    real, observed = lives(recorder.truth), lives(recorder.truth, watch.documents)
    announced = {identity(d) for d in watch.documents if d["pse"]["reason"] == "running"}
    unseen, seen, inside_execve = [], [], []
    for who, events in real.items():
        shown = [kind for kind, _ in observed.get(who, [])]
        before, after = events[: len(events) - len(shown)], events[len(events) - len(shown) :]
        assert [kind for kind, _ in after] == shown, (who, events, shown)
        unseen += [at for _, at in before]
        seen += [at for _, at in after]
        if before and before[-1][0] != "end" and who not in announced:
            inside_execve.append(who)
            assert shown[:1] == ["exec"], (who, events, shown)
    assert len(seen) > 500
    assert len(inside_execve) <= 2 * guest.spec.cpus
    # A step is traced before it is finished and trapped: the look that begins a watch falls between the two
    # for a task or so of each vCPU, and meanwhile the other vCPUs may have gone on for a while (busy host).
    between = [at for at in seen if at < max(unseen)]
    assert len(between) <= 2 * guest.spec.cpus, (between, max(unseen))


def lives(truth, documents=None):
    """Of each identity, what happened (or was shown): (kind, position in the whole)."""
    found = {}
    order = comparison._real(truth).order if documents is None else comparison._observed(documents).order
    for at, (kind, who) in enumerate(order):
        found.setdefault(who, []).append((kind, at))
    return found


def identity(document):
    return document["process"]["pid"], document["pse"]["start_boottime"]
