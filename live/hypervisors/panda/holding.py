"""Traps on their way from the thread of the vCPUs to the reader, and vCPUs that wait for it.

Theory of operation
-------------------
The lock guards everything.  The vCPUs' thread decides and enqueues under it, so a request that replaces
another one under it is in force when that returns.  Nobody tells us that PANDA ends; whoever waits looks at
that after `GLANCE_S`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from live.core.traps import Action, Trap, TrapCounters

GLANCE_S = 0.05
RING = 4096
"""Recorded traps that nobody has read; what comes then is dropped."""


class Moment(NamedTuple):
    """What a trap has of the queue."""

    sequence: int
    time_ns: int
    held: bool


class TrapQueue:
    """One reader, and one thread of vCPUs."""

    def __init__(self, hold: float, over: Callable[[], bool]) -> None:
        """``hold``: seconds that a vCPU is held at most; ``over``: whether the machine is, cheap."""
        self.lock = threading.Condition()
        self._hold, self._over = hold, over
        self._traps: deque[Trap] = deque()
        self._recorded = self._sequence = 0
        self._held: set[int] = set()
        self._closed = False
        self._delivered = self._dropped = self._timeouts = self._held_ns = 0

    @property
    def counters(self) -> TrapCounters:
        """See `live.core.traps.TrapSource.counters`."""
        with self.lock:
            return TrapCounters(
                delivered=self._delivered,
                dropped=self._dropped,
                hold_timeouts=self._timeouts,
                held_ns=self._held_ns,
            )

    def put(self, action: Action, make: Callable[[Moment], Trap]) -> None:
        """On the thread of the vCPUs, with the lock: note what ``make`` gives, and wait if it is held."""
        if self._closed or action is Action.OFF:
            return
        if action is Action.RECORD and self._recorded >= RING:
            self._dropped += 1
            return
        held = action is Action.HOLD
        self._sequence += 1
        moment = Moment(self._sequence, time.monotonic_ns(), held)
        trap = make(moment)
        if held:
            self._held.add(moment.sequence)
        else:
            self._recorded += 1
        self._traps.append(trap)
        self.lock.notify_all()
        if held:
            self._wait_for_reader(moment.sequence)

    def _wait_for_reader(self, sequence: int) -> None:
        began = time.monotonic()
        while sequence in self._held and not self._closed and not self._over():
            left = began + self._hold - time.monotonic()
            if left <= 0:
                self._timeouts += 1
                break
            self.lock.wait(min(left, GLANCE_S))
        self._held.discard(sequence)
        self._held_ns += int((time.monotonic() - began) * 1e9)

    def take(self, timeout: float | None) -> Trap | None:
        """The next trap, None after ``timeout`` seconds, or as soon as the machine is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.lock:
            while not self._traps:
                left = GLANCE_S if deadline is None else deadline - time.monotonic()
                if left <= 0 or self._closed or self._over():
                    return None
                self.lock.wait(min(left, GLANCE_S))
            self._delivered += 1
            trap = self._traps.popleft()
            self._recorded -= not trap.held
            return trap

    def release(self, trap: Trap) -> None:
        """Let the vCPU of a held trap go on; nothing for any other."""
        with self.lock:
            self._held.discard(trap.sequence)
            self.lock.notify_all()

    def close(self) -> None:
        """Let every vCPU go, and hold none any more."""
        with self.lock:
            self._closed = True
            self._held.clear()
            self._traps.clear()
            self.lock.notify_all()
