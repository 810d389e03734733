"""The loop over traps: what it does with a trap that it took too late."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from live.core.errors import GuestGone
from live.core.memory import GuestVirtual
from live.core.snapshot import Counters
from live.core.tracker import Tracker
from live.core.traps import Action, TrapCounters, TrapRequest, VcpuIndex
from live.watch.watchers import Trapper
from tests.core.build import describe, snapshot
from tests.hypervisors.fake import FakeSource, asid_change, code_hit

REQUEST = TrapRequest(code=frozenset({GuestVirtual(0x1000)}))


class Steps:
    """Writes down what it is asked for."""

    request = None

    def __init__(self):
        self.tracker = Tracker(describe)
        self.done = []

    def snapshot(self, time_ns, trigger):
        self.done.append(trigger)
        return []

    def trap(self, trap, time_ns, late_ns):
        self.done.append(trap.sequence)
        return []


def session(forks, same=False):
    return SimpleNamespace(
        sleep=lambda seconds: None,
        counters=lambda: Counters(forks, 1, 0),
        os=SimpleNamespace(same_boot=lambda: same),
    )


def run(script, late=()):
    steps, source = Steps(), FakeSource(script)
    source.faults.late = set(late)
    trapper = Trapper(session(forks=10), steps, source, REQUEST)
    for _ in trapper.run(time.monotonic() + 0.05, lambda event: None):
        pass
    resumed = [sequence for call, sequence in source.calls if call == "resume"]
    return steps.done, resumed, trapper.cost


def test_traps_in_time_are_taken_one_by_one():
    done, resumed, cost = run([code_hit(1, 0x1000), code_hit(2, 0x1000)])
    assert done == ["attach", 1, 2, "proof"]
    assert (resumed, cost.late) == ([1, 2], 0)


def test_a_hold_that_ran_out_is_left_out_and_a_look_takes_its_place():
    """Its vCPU has gone on: the task that it names may be another one by now."""
    later = replace(code_hit(4, 0x1000), time_ns=time.monotonic_ns() + 1_000_000_000)
    script = [code_hit(1, 0x1000), code_hit(2, 0x1000), code_hit(3, 0x1000, held=False), later]
    done, resumed, cost = run(script, late={2})
    assert done == ["attach", 1, "resync", 4, "proof"]
    assert (resumed, cost.late) == ([1, 2, 3, 4], 2)


def test_where_nothing_follows_the_look_comes_when_the_guest_is_idle():
    done, _, cost = run([code_hit(1, 0x1000, held=False)])
    assert done == ["attach", "resync", "proof"]
    assert cost.late == 1


def test_a_guest_that_was_started_anew_is_noticed_without_a_word_from_the_monitor():
    steps = Steps()
    steps.tracker.receive_tasks(snapshot(forks=11))
    trapper = Trapper(session(forks=10), steps, FakeSource([]), REQUEST)
    with pytest.raises(GuestGone, match="started anew"):
        list(trapper.run(time.monotonic() + 1, lambda event: None))


def test_a_guest_that_went_back_to_an_earlier_moment_is_watched_on():
    """loadvm: fewer forks than before, and the same boot."""
    steps = Steps()
    steps.tracker.receive_tasks(snapshot(forks=11))
    trapper = Trapper(session(forks=10, same=True), steps, FakeSource([]), REQUEST)
    list(trapper.run(time.monotonic() + 0.05, lambda event: None))
    assert steps.done[:2] == ["attach", "rewind"]


def test_of_two_holds_that_ran_out_at_once_neither_is_believed():
    """Two vCPUs were held; the counter moved once, when the first of the traps was looked at."""
    trapper = Trapper(session(forks=0), Steps(), FakeSource([]), REQUEST)
    trapper._source = SimpleNamespace(counters=TrapCounters(hold_timeouts=2))
    old = time.monotonic_ns() - 1_500_000_000
    believed = [
        trapper._in_time(replace(code_hit(number, 0x1000, vcpu=VcpuIndex(number)), held=True, time_ns=old))
        for number in (0, 1)
    ]
    now = replace(code_hit(2, 0x1000), held=True, time_ns=time.monotonic_ns())
    assert [*believed, trapper._in_time(now)] == [False, False, True]


class Rearming(Steps):
    """Asks for something else behind each step."""

    request = TrapRequest(asid_changes=Action.HOLD)

    def trap(self, trap, time_ns, late_ns):
        self.request = TrapRequest(asid_changes=Action.HOLD, settled=frozenset({trap.new_asid}))
        return super().trap(trap, time_ns, late_ns)


def test_what_a_step_makes_of_the_request_is_in_force_before_its_vcpu_goes_on():
    steps, source = Rearming(), FakeSource([asid_change(1, 0x2000), asid_change(2, 0x4000)])
    steps.tracker.receive_tasks(snapshot(threads=1))
    trapper = Trapper(session(forks=0), steps, source, steps.request)
    for _ in trapper.run(time.monotonic() + 0.02, lambda event: None):
        pass
    calls = [(call, value) for call, value in source.calls if call in ("arm", "resume")]
    armed = [value.settled for call, value in calls if call == "arm"]
    assert [call for call, _ in calls] == ["arm", "arm", "resume", "arm", "resume", "arm"]
    assert armed == [frozenset(), {0x2000}, {0x4000}, frozenset()]


def test_an_asid_change_that_is_only_recorded_is_not_late():
    steps, source = Rearming(), FakeSource([asid_change(1, 0x2000, held=False)])
    steps.tracker.receive_tasks(snapshot(threads=1))
    trapper = Trapper(session(forks=0), steps, source, steps.request)
    for _ in trapper.run(time.monotonic() + 0.02, lambda event: None):
        pass
    assert steps.done[:2] == ["attach", 1]
    assert trapper.cost.late == 0


@pytest.mark.parametrize("asids", [True, False])
def test_where_asid_changes_are_trapped_counters_that_moved_are_looked_at_at_once(asids):
    """A kernel keeps a process's asid for what has none, so a process may come without an asid change."""
    steps = Rearming() if asids else Steps()
    steps.tracker.receive_tasks(snapshot(forks=9))
    trapper = Trapper(session(forks=10), steps, FakeSource([]), steps.request or REQUEST)
    run = trapper.run(time.monotonic() + 1, lambda event: None)
    next(run)
    next(run)
    assert steps.done == (["attach", "proof"] if asids else ["attach"])
    run.close()
