"""Looking for traps instead of sleeping: when, for how long, and at whose cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from live.adapters.qemu.plugin.lookout import CLOSELY_NS, EAGER_NS, Lookout

LOOK_NS, NAP_NS = 1_000, 60_000


class Thread:
    """The scheduler as a thread sees it: its priority, its CPUs, the time, and what is done at its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, priority: int = 0, best: int = -20) -> None:
        """``best``: the best priority that it may give itself."""
        self.now = 10**12
        self.priority, self.best = priority, best
        self.cpus = {0, 1, 2}
        self.looks: list[int] = []
        """The priorities at which it looked once more."""
        self.naps = 0
        self.where: list[set[int]] = []
        """The CPUs that it might have run on meanwhile."""
        self.others: Callable[[], None] = lambda: None
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self._sleep)
        monkeypatch.setattr(os, "getpriority", lambda which, who: self.priority)
        monkeypatch.setattr(os, "setpriority", self._set)
        monkeypatch.setattr(os, "sched_yield", self._yield)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(self.cpus))
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: setattr(self, "cpus", set(cpus)))

    def _set(self, _which: int, _who: int, priority: int) -> None:
        priority = max(priority, -20)  # as the kernel does
        if priority < self.priority and priority < self.best:
            raise PermissionError
        self.priority = priority

    def _yield(self) -> None:
        self.now += LOOK_NS
        self.looks.append(self.priority)
        self.where.append(set(self.cpus))
        self.others()

    def _sleep(self, seconds: float) -> None:
        assert 0 < seconds < 0.0001
        self.now += NAP_NS
        self.naps += 1
        self.where.append(set(self.cpus))

    def look(self, lookout: Lookout, nothing: Callable[[], bool] = lambda: True) -> tuple[list[int], int]:
        """Look for a trap: (the priorities at which it did, how many naps it took)."""
        self.looks, self.naps = [], 0
        lookout.look(nothing)
        return self.looks, self.naps

    def eager(self, spare: bool = True) -> Lookout:
        """One that has just seen two traps."""
        lookout = Lookout(spare)
        lookout.trap(self.now)
        lookout.trap(self.now)
        return lookout


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    return Thread(monkeypatch)


def test_one_trap_is_no_reason_to_look(thread: Thread) -> None:
    lookout = Lookout(spare=True)
    assert thread.look(lookout) == ([], 0)
    lookout.trap(thread.now)
    assert thread.look(lookout) == ([], 0)


def test_two_traps_far_apart_are_none(thread: Thread) -> None:
    lookout = Lookout(spare=True)
    lookout.trap(thread.now - EAGER_NS)
    lookout.trap(thread.now)
    assert thread.look(lookout) == ([], 0)


def test_two_traps_in_quick_succession_are(thread: Thread) -> None:
    lookout, begin = thread.eager(), thread.now
    looks, naps = thread.look(lookout)
    assert looks == [0] * (CLOSELY_NS // LOOK_NS)
    assert naps == -((CLOSELY_NS - EAGER_NS) // NAP_NS)
    assert EAGER_NS <= thread.now - begin < EAGER_NS + NAP_NS
    assert thread.look(lookout) == ([], 0), "its time is over"


def test_not_where_the_vcpus_need_every_cpu(thread: Thread) -> None:
    assert thread.look(thread.eager(spare=False)) == ([], 0)


def test_it_ends_with_the_next_trap(thread: Thread) -> None:
    lookout = thread.eager()
    assert thread.look(lookout, lambda: len(thread.looks) < 3) == ([0, 0, 0], 0)
    assert thread.look(lookout, lambda: False) == ([], 0)
    assert thread.look(lookout, lambda: thread.naps < 3)[1] == 3


def test_a_better_priority_is_not_for_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch, -15)
    assert set(thread.look(thread.eager())[0]) == {0}
    assert thread.priority == -15


def test_it_comes_back_when_looking_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch, -15)
    lookout = thread.eager()
    lookout.trap(thread.now, 0, 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    thread.others = interrupt
    with pytest.raises(KeyboardInterrupt):
        lookout.look(lambda: True)
    assert thread.priority == -15
    assert thread.cpus == {0, 1, 2}


def test_a_priority_that_could_not_be_had_back_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch, -5, best=0)
    assert set(thread.look(thread.eager())[0]) == {-5}
    assert thread.priority == -5


def test_the_best_priority_is_kept_as_there_is_none_to_try_for(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch, -20, best=0)
    assert set(thread.look(thread.eager())[0]) == {-20}
    assert thread.priority == -20


def test_a_worse_priority_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch, 10)
    assert set(thread.look(thread.eager())[0]) == {10}


def test_whoever_takes_the_cpu_has_it_for_a_while(thread: Thread) -> None:
    def somebody() -> None:
        thread.now += 1_000_000

    def later() -> tuple[int, int]:
        lookout.trap(thread.now)
        lookout.trap(thread.now)
        looks, naps = thread.look(lookout)
        return len(looks), naps

    lookout, thread.others = thread.eager(), somebody
    looks, naps = thread.look(lookout)
    assert len(looks) == 1
    assert naps
    thread.others = lambda: None
    looks_then, naps_then = later()
    assert not looks_then
    assert naps_then > naps
    thread.now += 150_000_000
    assert later()[0]


@pytest.mark.parametrize(
    ("vcpus", "where"),
    [({0: 1}, {0, 2}), ({0: 1, 1: 2}, {0}), ({0: 0, 1: 1, 2: 2}, {0, 1, 2}), ({0: 7}, {0, 1, 2})],
)
def test_it_keeps_off_the_cpus_of_vcpus(thread: Thread, vcpus: dict[int, int], where: set[int]) -> None:
    lookout = Lookout(spare=True)
    for cpu in (0, None):  # where they were before does not matter
        for vcpu, last in vcpus.items():
            lookout.trap(thread.now, vcpu, last if cpu is None else cpu)
    looks, naps = thread.look(lookout)
    assert looks
    assert naps
    assert all(cpus == where for cpus in thread.where)
    assert thread.cpus == {0, 1, 2}


def test_cpus_that_somebody_else_gives_us_meanwhile_are_kept(thread: Thread) -> None:
    lookout = Lookout(spare=True)
    for _ in range(2):
        lookout.trap(thread.now, 0, 1)

    def somebody() -> None:
        thread.cpus = {2}

    thread.others = somebody
    lookout.look(lambda: not thread.looks)
    assert thread.cpus == {2}


def test_the_real_scheduler_takes_it_all_back() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    lookout = Lookout(spare=True)
    for _ in range(2):
        lookout.trap(time.monotonic_ns(), 0, min(before[1]))
    lookout.look(lambda: True)
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)) == before
