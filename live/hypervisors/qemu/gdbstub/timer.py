"""The hold timer: a thread that sees to it that no stop lasts beyond its limit, whatever its reader does."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

UNREAD_LIMIT = 1.0
"""Seconds after which a stop that nobody has read is acted upon: before the watchdog takes us for hung."""
_INTERVAL_S = 0.1


class Unread:
    """Whether a stop has been there for too long that nobody has read of.  Is told now and then."""

    def __init__(self, limit: float) -> None:
        """``limit``: seconds, at most `UNREAD_LIMIT`.  Nothing is unread."""
        self._limit, self._since, self._resumed = min(limit, UNREAD_LIMIT), math.inf, 0

    def overdue(self, now: float, resumed: int, *, said: bool) -> bool:
        """``said``: there is something unread now; ``resumed``: how often the guest was let run."""
        self._since = min(self._since, now) if said and resumed == self._resumed else math.inf
        self._resumed = resumed
        return now - self._since >= self._limit


class HoldTimer:
    """Calls a function several times within each hold limit, from a thread of its own."""

    def __init__(self, limit: float, tick: Callable[[], None]) -> None:
        """Start it.  ``limit``: seconds."""
        self._interval, self._tick = min(_INTERVAL_S, limit / 4), tick
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pse-gdb-hold", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._tick()

    def end(self) -> None:
        """No call is under way, or comes, once this has returned."""
        self._ended.set()
        self._thread.join()
