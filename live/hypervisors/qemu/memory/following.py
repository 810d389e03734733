"""What a reader will want next: what it wanted after the same miss in the generation before.  Pure.

A *generation* is the time between two refreshes; a *miss* is a line that was wanted and not there.  Whoever
looks at the same structures again and again misses the same first line each time, and wants much the same
lines after it.
"""

from __future__ import annotations

from collections.abc import Sequence

_MAX_KNOWN = 1 << 20
"""Lines that are remembered, all misses together; 8 bytes each."""


class Following:
    """Is told of what is wanted, by line number."""

    def __init__(self) -> None:
        """Nothing is known."""
        self.wanted: dict[int, None] = {}
        """Lines wanted in this generation, in the order of the first time; the reader adds to it."""
        self._misses: list[tuple[int, int]] = []
        """(the line that was missing, how many were wanted before)"""
        self._after: dict[int, tuple[tuple[int, ...], int]] = {}
        """Line that was missing -> what its generation wanted, from which place on."""
        self._known = 0

    def missed(self, line: int) -> Sequence[int] | None:
        """Note a miss; the lines that were wanted from it on when it last happened, None if it never did."""
        self._misses.append((line, len(self.wanted)))
        known = self._after.get(line)
        return None if known is None else known[0][known[1] :]

    def turn(self) -> None:
        """A generation ends, and the next begins."""
        if self._misses:
            wanted = tuple(self.wanted)
            self._known += len(wanted)
            if self._known > _MAX_KNOWN:
                self._after, self._known = {}, len(wanted)
            for line, place in self._misses:
                self._after[line] = (wanted, place)
        self.wanted, self._misses = {}, []
