"""To look for the next trap, most of the time between naps, instead of sleeping until it comes.

To wake us costs the vCPU's thread 25 us, and we begin later still.  So after two traps in quick succession we
look for the next one, for a while, before we sleep.  Only where the host has a CPU more than the guest has
vCPUs.

Theory of operation
-------------------
Not to nap would find a trap 70 us sooner, and cost more than that: whoever computes next to a vCPU makes it
slower (`busy` in `python -m tests.bench parts`), QEMU's main loop, which runs the guest's timers, wants a CPU
some hundred times a second, and on a busy host somebody else wants it all the time (`--company` there).  A
nap leaves it to them, and at its end we are on in time, because we keep whatever priority we have.  Only what
follows at once, as the end of a short thread its start, is looked for without.

The scheduler may let us nap on a vCPU's CPU, and at the end of each we push its thread aside.  So we keep off
the CPUs on which vCPUs were last trapped: while we look and from one trap to the next, and only if asked to,
because programs that a callback starts meanwhile would inherit that.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable

EAGER_NS = 10_000_000
"""For so long after a trap the next one is looked for,"""
CLOSELY_NS = 100_000
"""at first for so long without a nap."""
_NAP_S = 0.000_001
"""The kernel adds a thread's timer slack, 50 us (prctl(2), PR_SET_TIMERSLACK), and takes its time."""


class AdaptivePoll:
    """Looks for traps, for one thread: the one that waits for them."""

    def __init__(self, spare: bool) -> None:
        """``spare``: there is a CPU that no vCPU needs."""
        self._spare = spare
        self._until = self._last = 0
        self._of_vcpus: dict[int, int] = {}
        self._ours: set[int] = set()
        self._left: set[int] = set()
        """Of `_ours` those to which we keep, while we keep off others."""
        self.keeps_off = False
        """Whether it keeps off the CPUs of vCPUs."""

    def trap(self, taken_ns: int, vcpu: int, cpu: int) -> None:
        """A trap was found; ``taken_ns`` is when the vCPU took it, by the monotonic clock, ``cpu`` where."""
        since, self._last = taken_ns - self._last, taken_ns
        self._of_vcpus[vcpu] = cpu
        self._until = taken_ns + EAGER_NS if self._spare and since < EAGER_NS else 0

    def poll(self, nothing: Callable[[], bool], deadline: float = math.inf) -> None:
        """While traps are likely: return when ``nothing`` is not true any more, or it is time to sleep.

        ``deadline``: when to return at the latest, by `time.monotonic`.
        """
        if self._until and self.keeps_off:
            self._keep_off()
        until = min(self._until, deadline * 1e9)
        awake = time.monotonic_ns() + CLOSELY_NS
        while nothing():
            now = time.monotonic_ns()
            if now >= until:
                self.anywhere()
                return
            if now >= awake:
                time.sleep(_NAP_S)

    def _keep_off(self) -> None:
        busy = set(self._of_vcpus.values())
        if self._left and self._left == self._ours - busy:
            return
        self.anywhere()
        self._ours = os.sched_getaffinity(0)
        left = self._ours - busy
        if left and left != self._ours:
            with contextlib.suppress(OSError):  # they were taken from us just now
                os.sched_setaffinity(0, left)
                self._left = left

    def anywhere(self) -> None:
        """Run on every CPU again, unless somebody else has said meanwhile where we may run."""
        left, self._left = self._left, set()
        if left and os.sched_getaffinity(0) == left:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._ours)
