"""Whether a stop has been there for too long that nobody has read of."""

from __future__ import annotations

import math
import time

LIMIT = 1.0
"""Seconds; before the guardian takes us for hung."""


class Unread:
    """Is asked now and then, and remembers what it was told; ``limit``: seconds, at most `LIMIT`."""

    def __init__(self, limit: float) -> None:
        """Nothing is unread."""
        self._limit, self._since, self._resumed = min(limit, LIMIT), math.inf, 0

    def overdue(self, said: bool, resumed: int) -> bool:
        """``said``: there is something unread now; ``resumed``: how often the guest was let run."""
        now = time.monotonic()
        self._since = min(self._since, now) if said and resumed == self._resumed else math.inf
        self._resumed = resumed
        return now - self._since >= self._limit
