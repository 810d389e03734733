"""Looking for traps between naps: when, for how long, and where."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from live.hypervisors.qemu.plugin.adaptive import CLOSELY_NS, EAGER_NS, AdaptivePoll

LOOK_NS, NAP_NS = 1_000, 60_000


class Thread:
    """The scheduler as a thread sees it: the time, its CPUs, and what happens while it naps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**12
        self.cpus = {0, 1, 2}
        self.naps: list[set[int]] = []
        """The CPUs that it might have run on at the end of each."""
        self.meanwhile: Callable[[], None] = lambda: None
        monkeypatch.setattr(time, "monotonic_ns", self._clock)
        monkeypatch.setattr(time, "sleep", self._nap)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(self.cpus))
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: setattr(self, "cpus", set(cpus)))

    def _clock(self) -> int:
        self.now += LOOK_NS
        return self.now

    def _nap(self, seconds: float) -> None:
        assert 0 < seconds < 0.0001
        self.now += NAP_NS
        self.naps.append(set(self.cpus))
        self.meanwhile()

    def look(self, adaptive: AdaptivePoll, naps: int = 10**6) -> int:
        """Snapshot for a trap, which comes after so many naps: how many it took."""
        self.naps = []
        adaptive.poll(lambda: len(self.naps) < naps)
        return len(self.naps)

    def eager(self, *, spare: bool = True, cpu: int = 7, keeps_off: bool = False) -> AdaptivePoll:
        """One that has just seen two traps on that CPU."""
        adaptive = AdaptivePoll(spare)
        adaptive.keeps_off = keeps_off
        for _ in range(2):
            adaptive.trap(self.now, 0, cpu)
        return adaptive


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    return Thread(monkeypatch)


def test_one_trap_is_no_reason_to_look(thread: Thread) -> None:
    adaptive = AdaptivePoll(spare=True)
    assert thread.look(adaptive) == 0
    adaptive.trap(thread.now, 0, 1)
    assert thread.look(adaptive) == 0


def test_two_traps_far_apart_are_none(thread: Thread) -> None:
    adaptive = AdaptivePoll(spare=True)
    adaptive.trap(thread.now - EAGER_NS, 0, 1)
    adaptive.trap(thread.now, 0, 1)
    assert thread.look(adaptive) == 0


def test_two_traps_in_quick_succession_are(thread: Thread) -> None:
    adaptive = AdaptivePoll(spare=True)
    adaptive.trap(thread.now - EAGER_NS + 1, 0, 1)
    adaptive.trap(thread.now, 0, 1)
    begin = thread.now
    looked = thread.look(adaptive) * (NAP_NS + LOOK_NS) + CLOSELY_NS
    assert EAGER_NS <= thread.now - begin < EAGER_NS + 2 * NAP_NS
    assert abs(looked - EAGER_NS) < 2 * NAP_NS
    assert thread.look(adaptive) == 0, "its time is over"


def test_at_first_it_does_not_nap(thread: Thread) -> None:
    adaptive, begin = thread.eager(), thread.now
    adaptive.poll(lambda: thread.now - begin < CLOSELY_NS)
    assert thread.naps == []
    assert thread.now - begin < CLOSELY_NS + 5 * LOOK_NS


def test_not_where_the_vcpus_need_every_cpu(thread: Thread) -> None:
    assert thread.look(thread.eager(spare=False)) == 0


def test_it_ends_with_the_next_trap(thread: Thread) -> None:
    adaptive = thread.eager()
    assert thread.look(adaptive, 0) == 0
    assert thread.look(adaptive, 3) == 3


def test_it_ends_at_the_deadline(thread: Thread) -> None:
    deadline = thread.now + CLOSELY_NS + 5 * NAP_NS
    thread.eager().poll(lambda: True, deadline / 1e9)
    assert thread.naps
    assert deadline <= thread.now < deadline + 2 * NAP_NS
    begin = thread.now
    thread.eager().poll(lambda: True, 0)
    assert thread.now - begin < 5 * LOOK_NS


@pytest.mark.parametrize(
    ("vcpus", "where"),
    [({0: 1}, {0, 2}), ({0: 1, 1: 2}, {0}), ({0: 0, 1: 1, 2: 2}, {0, 1, 2}), ({0: 7}, {0, 1, 2})],
)
def test_it_keeps_off_the_cpus_of_vcpus(thread: Thread, vcpus: dict[int, int], where: set[int]) -> None:
    adaptive = thread.eager(cpu=0, keeps_off=True)
    for before in (True, False):  # where they were before does not matter
        for vcpu, last in vcpus.items():
            adaptive.trap(thread.now, vcpu, 0 if before else last)
        thread.look(adaptive, 2)
        assert thread.naps == [{1, 2} if before else where] * 2
    thread.look(adaptive)
    assert thread.cpus == {0, 1, 2}, "when it is time to sleep"


def test_it_stays_there_from_trap_to_trap(thread: Thread) -> None:
    adaptive = thread.eager(cpu=1, keeps_off=True)
    thread.look(adaptive, 1)
    assert thread.cpus == {0, 2}
    adaptive.trap(thread.now, 0, 1)
    thread.look(adaptive, 0)
    assert thread.cpus == {0, 2}
    adaptive.anywhere()
    assert thread.cpus == {0, 1, 2}


def test_it_goes_anywhere_where_callbacks_may_start_programs(thread: Thread) -> None:
    thread.look(thread.eager(cpu=1), 1)
    assert thread.naps == [{0, 1, 2}]


def test_where_somebody_else_says_that_we_run_we_run(thread: Thread) -> None:
    def somebody() -> None:
        thread.cpus = {1, 2}

    adaptive = thread.eager(cpu=1, keeps_off=True)
    thread.meanwhile = somebody
    thread.look(adaptive, 1)
    adaptive.anywhere()
    assert thread.cpus == {1, 2}
    thread.meanwhile = lambda: None
    adaptive.trap(thread.now, 0, 1)
    thread.look(adaptive, 1)
    assert thread.naps == [{2}]


def test_the_real_scheduler_gives_it_all_back() -> None:
    before = os.sched_getaffinity(0)
    adaptive = AdaptivePoll(spare=True)
    adaptive.keeps_off = True
    for _ in range(2):
        adaptive.trap(time.monotonic_ns(), 0, min(before))
    ends = iter((True, False))
    adaptive.poll(lambda: next(ends))
    assert os.sched_getaffinity(0) == (before - {min(before)} or before)
    adaptive.poll(lambda: True)
    assert os.sched_getaffinity(0) == before
