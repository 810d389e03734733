"""The rows on which peers fail, one test each: what `pse watch --json` says, against what the program does.

No record of the guest's is needed: how often each program forks and execs, and how its children end, is in
its table (tests/guest/workloads.py).
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.accuracy.campaign import quiet
from tests.accuracy.run import trappable
from tests.guest import GuestSpec
from tests.guest.workloads import Workload, workloads
from tests.watch import Watch

pytestmark = pytest.mark.guest

N = 20
ROWS = (
    "vfork-exit",
    "exec-fail",
    "exec-retry",
    "exec-thread",
    "killed",
    "spawn",
    "threads",
    "leader-exit",
    "pid-reuse",
    "brief",
    "execveat",
    "script",
    "clone3",
    "int80",
)


@pytest.fixture(scope="module")
def watched():
    with trappable(GuestSpec(kernel="6.12")) as guest, Watch(str(guest.monitor), "--mode", "plugin") as watch:
        yield guest, watch
        quiet(watch)
    assert watch.missed == 0


@pytest.mark.parametrize("work", [w for w in workloads(N) if w.argv[0] in ROWS], ids=lambda w: w.name)
def test_exactly_what_the_program_does(watched, work: Workload):
    guest, watch = watched
    before = len(watch.documents)
    job = guest.start(list(work.argv))
    job.wait(120)
    quiet(watch)
    events: dict[str, list[tuple[object, ...]]] = {}
    root = None
    for document in watch.documents[before:]:
        process, own = document["process"], document["pse"]
        name, parent = process["entity_id"], process["parent"].get("entity_id")
        if root is None and process["pid"] == job.wait_pid():
            root = name
        if name in events or name == root or (parent in events and own["reason"] == "fork"):
            signal = own.get("signal", {}).get("number", 0)
            core = 0x80 if own.get("core") else 0
            status = signal | core if signal else process.get("exit_code", 0) << 8
            events.setdefault(name, []).append((own["event"], own["reason"], status))
    (mine,) = [each for name, each in events.items() if name == root]
    children = [each for name, each in events.items() if name != root]
    first, last = ("ProcessStart", "fork", 0), ("ProcessEnd", "exit", 0)
    assert mine == [first, *exec_events(1), last]
    assert Counter(each[-1][2] for each in children) == work.ends
    assert sum(len(each) - 2 for each in children) == 3 * work.execs
    for each in children:
        assert each[0] == first
        assert each[-1][:2] == ("ProcessEnd", "signal" if each[-1][2] & 0x7F else "exit")
        assert each[1:-1] == exec_events((len(each) - 2) // 3)


def exec_events(times: int) -> list[tuple[object, ...]]:
    """What an exec is: the end of the old image, the exec, the start of the new one."""
    return [("ProcessEnd", "exec", 0), ("ProcessExec", "exec", 0), ("ProcessStart", "exec", 0)] * times
