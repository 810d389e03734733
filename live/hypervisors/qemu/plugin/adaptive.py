"""Adaptive polling: while traps follow each other quickly, look for the next one instead of sleeping.

To wake us costs the vCPU's thread 25 us, and we begin later still.  So after two traps in quick succession we
poll for the next one, for a while, before we sleep.  Only where the host has a CPU more than the guest has
vCPUs.

Theory of operation
-------------------
We nap between two looks.  Without naps a trap is found 70 us sooner, and that costs more than it gains: a
busy CPU slows down the vCPU beside it (`busy` in `python -m tests.bench parts`), QEMU's main loop, which runs
the guest's timers, needs a CPU some hundred times a second, and on a busy host others need it all the time
(`--company` there).  A nap leaves the CPU to them.  Only at first do we poll without naps: what follows at
once, as the end of a short thread follows its start, is found then.

Priority, timer slack and CPU affinity of the calling thread stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

EAGER_NS = 10_000_000
"""How long after a trap the next one is polled for."""
CLOSELY_NS = 100_000
"""How long of that without naps."""
_NAP_S = 0.000_001
"""The kernel adds a thread's timer slack, 50 us (prctl(2), PR_SET_TIMERSLACK)."""


class AdaptivePoll:
    """Polls for traps, for the one thread that waits for them."""

    def __init__(self, spare: bool) -> None:
        """``spare``: there is a CPU that no vCPU needs; without one, `poll` returns at once."""
        self._spare = spare
        self._until = self._last = 0

    def trap(self, taken_ns: int) -> None:
        """A trap was found; ``taken_ns``: when the vCPU took it, in ns of the monotonic clock."""
        since, self._last = taken_ns - self._last, taken_ns
        self._until = taken_ns + EAGER_NS if self._spare and since < EAGER_NS else 0

    def poll(self, nothing: Callable[[], bool], deadline: float = math.inf) -> None:
        """While traps are likely: return when ``nothing`` is not true any more, or it is time to sleep.

        ``deadline``: when to return at the latest, in seconds of the monotonic clock.
        """
        until = min(self._until, deadline * 1e9)
        awake = time.monotonic_ns() + CLOSELY_NS
        while nothing():
            now = time.monotonic_ns()
            if now >= until:
                return
            if now >= awake:
                time.sleep(_NAP_S)
