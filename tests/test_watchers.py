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
from live.core.traps import TrapCounters, TrapRequest, VcpuIndex
from live.watch.watchers import Trapper
from tests.core.build import describe, snapshot
from tests.hypervisors.fake import FakeSource, code_hit

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
