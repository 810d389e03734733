"""The guest's boot clock at moments of the observer's, from readings that are each a little old.

Whatever the guest has written down of its clock (the kernel's own reading, a process's start) is not
ahead of that clock.  Both clocks go at the same pace.  So of all differences between the two, the largest is
the nearest to the truth.  A guest that stood still has fallen behind: a reading that is known to be new takes
the difference back.

Deterministic: the same readings give the same answers, so a replay has them again.
"""

from __future__ import annotations

WINDOW_NS = 60_000_000_000
"""For how long a difference counts, at least: clocks drift apart, and either may be set."""
FRESH_NS = 100_000_000
"""How old a kernel's reading is at most while the guest runs: a timer tick, and what delays it."""


class BootClock:
    """The guest's boot clock, ns; a moment of the observer is UTC ns since the epoch."""

    def __init__(self) -> None:
        """Nothing is known before the first reading."""
        self._ahead: int | None = None
        self._before: int | None = None
        self._since = 0

    def seen(self, time_ns: int, boot_ns: int, oldest_ns: int | None = None) -> None:
        """At ``time_ns`` the clock had reached ``boot_ns``.

        ``oldest_ns``: by how much it may have been ahead of that; None: by any time.
        """
        if not 0 <= time_ns - self._since < WINDOW_NS:
            self._before = self._ahead if 0 <= time_ns - self._since < 2 * WINDOW_NS else None
            self._ahead, self._since = None, time_ns
        ahead = boot_ns - time_ns
        self._ahead = ahead if self._ahead is None else max(self._ahead, ahead)
        if oldest_ns is not None:
            most = ahead + oldest_ns
            self._ahead = min(self._ahead, most)
            self._before = None if self._before is None else min(self._before, most)

    def at(self, time_ns: int) -> int | None:
        """What the clock shows at ``time_ns``; None if nothing was seen."""
        if self._ahead is None:
            return None
        ahead = self._ahead if self._before is None else max(self._ahead, self._before)
        return max(time_ns + ahead, 0)
