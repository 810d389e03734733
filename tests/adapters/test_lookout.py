"""Looking for traps instead of sleeping: when, for how long, and at whose cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from live.adapters.qemu.plugin.lookout import EAGER_NS, Lookout


class Thread:
    """The scheduler as a thread sees it: its priority, and what is done at its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, priority: int, best: int = -20) -> None:
        """``best``: the best priority that it may give itself."""
        self.priority, self.best = priority, best
        self.while_looking: list[int] = []
        self.others: Callable[[], None] = lambda: None
        monkeypatch.setattr(os, "getpriority", lambda which, who: self.priority)
        monkeypatch.setattr(os, "setpriority", self._set)
        monkeypatch.setattr(os, "sched_yield", self._yield)

    def _set(self, _which: int, _who: int, priority: int) -> None:
        priority = max(priority, -20)  # as the kernel does
        if priority < self.priority and priority < self.best:
            raise PermissionError
        self.priority = priority

    def _yield(self) -> None:
        self.while_looking.append(self.priority)
        self.others()


def looked(lookout: Lookout, thread: Thread, nothing: Callable[[], bool] = lambda: True) -> list[int]:
    """The priorities at which it looked once more."""
    thread.while_looking = []
    lookout.look(nothing)
    return thread.while_looking


def eager(spare: bool = True) -> Lookout:
    """One that has just seen two traps."""
    lookout = Lookout(spare)
    lookout.trap(time.monotonic_ns())
    lookout.trap(time.monotonic_ns())
    return lookout


def test_one_trap_is_no_reason_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, 0), Lookout(spare=True)
    assert not looked(lookout, thread)
    lookout.trap(time.monotonic_ns())
    assert not looked(lookout, thread)


def test_two_traps_far_apart_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, 0), Lookout(spare=True)
    now = time.monotonic_ns()
    lookout.trap(now - EAGER_NS)
    lookout.trap(now)
    assert not looked(lookout, thread)


def test_two_traps_in_quick_succession_are(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, 0), eager()
    begin = time.monotonic_ns()
    assert looked(lookout, thread)
    assert time.monotonic_ns() - begin >= EAGER_NS / 2
    assert not looked(lookout, thread), "its time is over"


def test_not_where_the_vcpus_need_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread(monkeypatch, 0)
    assert not looked(eager(spare=False), thread)


def test_it_ends_with_the_next_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, 0), eager()
    assert looked(lookout, thread, lambda: len(thread.while_looking) < 3) == [0, 0, 0]
    assert not looked(lookout, thread, lambda: False)


def test_a_better_priority_is_not_for_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, -15), eager()
    assert set(looked(lookout, thread)) == {0}
    assert thread.priority == -15


def test_it_comes_back_when_looking_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, -15), eager()

    def interrupt() -> None:
        raise KeyboardInterrupt

    thread.others = interrupt
    with pytest.raises(KeyboardInterrupt):
        lookout.look(lambda: True)
    assert thread.priority == -15


def test_a_priority_that_could_not_be_had_back_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, -5, best=0), eager()
    assert set(looked(lookout, thread)) == {-5}
    assert thread.priority == -5


def test_the_best_priority_is_kept_as_there_is_none_to_try_for(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, -20, best=0), eager()
    assert set(looked(lookout, thread)) == {-20}
    assert thread.priority == -20


def test_a_worse_priority_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, 10), eager()
    assert set(looked(lookout, thread)) == {10}


def test_whoever_takes_the_cpu_has_it_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, lookout = Thread(monkeypatch, 0), eager()
    thread.others = lambda: time.sleep(0.001)
    assert len(looked(lookout, thread)) == 1
    thread.others = lambda: None
    lookout.trap(time.monotonic_ns())
    lookout.trap(time.monotonic_ns())
    assert not looked(lookout, thread)
    later = time.monotonic_ns() + 150_000_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: later)
    lookout.trap(later)
    lookout.trap(later)
    assert looked(lookout, thread, lambda: not thread.while_looking)


def test_the_real_scheduler_takes_the_priority_back() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    lookout = eager()
    lookout.look(lambda: True)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
