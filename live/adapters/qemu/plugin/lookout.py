"""To look for the next trap instead of sleeping until it comes: what KVM does when a vCPU halts.

To be woken takes longer than to handle a trap, and the vCPU stands meanwhile.  So after two traps in quick
succession the next one is looked for, for `EAGER_NS`, before we sleep.  Only where the host has a CPU more
than the guest has vCPUs.

Theory of operation
-------------------
Whoever looks takes a CPU, and QEMU's other threads want one now and then, some hundred times a second: its
main loop runs the guest's timers.  If they have to wait for us, or push the vCPU's thread aside, the guest
is slower for it (`looking` in `python -m tests.bench parts`).  So we offer our CPU at each turn of the loop,
at the priority of everybody: with a better one, which `pse watch` has so that vCPUs do not stand,
sched_yield(2) gives little away.  And if somebody takes the CPU for long, it was not spare: then we sleep
for a while.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

EAGER_NS = 2_000_000
_TAKEN_NS = 500_000
"""QEMU's main loop is done in 20 us; whoever is not wants to have a CPU."""
_RETREAT_NS = 100_000_000
"""For so long the CPU counts as taken."""
_BEST = -20
"""There is no better priority to try for: whether this one could be had back is not known."""


class Lookout:
    """Looks for traps, for one thread: the one that waits for them."""

    def __init__(self, spare: bool) -> None:
        """``spare``: there is a CPU that no vCPU needs."""
        self._spare = spare
        self._until = self._last = self._retreat = 0
        self._may_return: bool | None = None
        self._poll = select.poll()

    def trap(self, taken_ns: int) -> None:
        """A trap was found; ``taken_ns`` is when the vCPU took it, by the monotonic clock."""
        since, self._last = taken_ns - self._last, taken_ns
        eager = self._spare and since < EAGER_NS and taken_ns >= self._retreat
        self._until = taken_ns + EAGER_NS if eager else 0

    def look(self, nothing: Callable[[], bool]) -> None:
        """While traps are likely: return when ``nothing`` is not true any more, or it is time to sleep."""
        now = time.monotonic_ns()
        if now >= self._until or not nothing():
            return
        priority = self._step_down()
        try:
            while now < self._until and nothing():
                self._poll.poll(0)  # lets other threads of ours run
                os.sched_yield()
                before, now = now, time.monotonic_ns()
                if now - before > _TAKEN_NS:
                    self._until, self._retreat = 0, now + _RETREAT_NS
        finally:
            if priority:
                os.setpriority(os.PRIO_PROCESS, 0, priority)

    def _step_down(self) -> int:
        """Give up this thread's better priority and return it; 0: it has none, or could not have it back."""
        priority = os.getpriority(os.PRIO_PROCESS, 0)
        if priority >= 0:
            return 0
        if self._may_return is None:
            self._may_return = _may_raise(priority)
        if not self._may_return:
            return 0
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        return priority


def _may_raise(priority: int) -> bool:
    """Whether this thread may have a better priority than ``priority``: then it may have this one, too."""
    if priority <= _BEST:
        return False
    try:
        os.setpriority(os.PRIO_PROCESS, 0, priority - 1)
    except PermissionError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, priority)
    return True
