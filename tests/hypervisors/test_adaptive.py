"""Polling for traps between naps: when, and for how long."""

from __future__ import annotations

import os
import time

import pytest

from live.hypervisors.qemu.plugin.adaptive import CLOSELY_NS, EAGER_NS, AdaptivePoll

LOOK_NS, NAP_NS = 1_000, 60_000


class Clock:
    """Time as a thread sees it that looks and naps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**12
        self.naps = 0
        monkeypatch.setattr(time, "monotonic_ns", self._look)
        monkeypatch.setattr(time, "sleep", self._nap)

    def _look(self) -> int:
        self.now += LOOK_NS
        return self.now

    def _nap(self, seconds: float) -> None:
        assert 0 < seconds < 0.0001
        self.now += NAP_NS
        self.naps += 1

    def polled(self, adaptive: AdaptivePoll, naps: int = 10**6) -> int:
        """Poll for a trap that comes after so many naps: how many it took."""
        self.naps = 0
        adaptive.poll(lambda: self.naps < naps)
        return self.naps

    def eager(self, *, spare: bool = True) -> AdaptivePoll:
        """One that has just seen two traps."""
        adaptive = AdaptivePoll(spare)
        for _ in range(2):
            adaptive.trap(self.now)
        return adaptive


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_one_trap_is_no_reason_to_poll(clock: Clock) -> None:
    adaptive = AdaptivePoll(spare=True)
    assert clock.polled(adaptive) == 0
    adaptive.trap(clock.now)
    assert clock.polled(adaptive) == 0


def test_two_traps_far_apart_are_none(clock: Clock) -> None:
    adaptive = AdaptivePoll(spare=True)
    adaptive.trap(clock.now - EAGER_NS)
    adaptive.trap(clock.now)
    assert clock.polled(adaptive) == 0


def test_two_traps_in_quick_succession_are(clock: Clock) -> None:
    adaptive = AdaptivePoll(spare=True)
    adaptive.trap(clock.now - EAGER_NS + 1)
    adaptive.trap(clock.now)
    begin = clock.now
    polled = clock.polled(adaptive) * (NAP_NS + LOOK_NS) + CLOSELY_NS
    assert EAGER_NS <= clock.now - begin < EAGER_NS + 2 * NAP_NS
    assert abs(polled - EAGER_NS) < 2 * NAP_NS
    assert clock.polled(adaptive) == 0, "its time is over"


def test_at_first_it_does_not_nap(clock: Clock) -> None:
    adaptive, begin = clock.eager(), clock.now
    adaptive.poll(lambda: clock.now - begin < CLOSELY_NS)
    assert clock.naps == 0
    assert clock.now - begin < CLOSELY_NS + 5 * LOOK_NS


def test_not_where_the_vcpus_need_every_cpu(clock: Clock) -> None:
    assert clock.polled(clock.eager(spare=False)) == 0


def test_it_ends_with_the_next_trap(clock: Clock) -> None:
    adaptive = clock.eager()
    assert clock.polled(adaptive, 0) == 0
    assert clock.polled(adaptive, 3) == 3


def test_it_ends_at_the_deadline(clock: Clock) -> None:
    deadline = clock.now + CLOSELY_NS + 5 * NAP_NS
    clock.eager().poll(lambda: True, deadline / 1e9)
    assert clock.naps
    assert deadline <= clock.now < deadline + 2 * NAP_NS
    begin = clock.now
    clock.eager().poll(lambda: True, 0)
    assert clock.now - begin < 5 * LOOK_NS


def test_it_leaves_the_thread_as_it_is() -> None:
    """The caller's thread is the user's: where it may run is nothing that polling changes."""
    adaptive, within = AdaptivePoll(spare=True), set[tuple[object, ...]]()

    def state() -> tuple[object, ...]:
        return frozenset(os.sched_getaffinity(0)), os.sched_getscheduler(0), os.getpriority(0, 0)

    def nothing() -> bool:
        within.add(state())
        return True

    before = state()
    for _ in range(2):
        adaptive.trap(time.monotonic_ns())
    adaptive.poll(nothing)
    assert within == {before}
