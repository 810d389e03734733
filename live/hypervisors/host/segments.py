"""Which guest-physical addresses are RAM, and where a process of this host has it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from live.core.errors import MemoryFault
from live.core.memory import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRun:
    """``length`` bytes of guest RAM from gpa ``start``, which a process has at address ``hva``."""

    start: int
    length: int
    hva: int

    @property
    def end(self) -> int:
        """First gpa behind it."""
        return self.start + self.length


class Segments:
    """The part that all readers share: which gpa is RAM."""

    segments: Sequence[Segment]

    def __init__(self, segments: Sequence[Segment]) -> None:
        """``segments``: ascending, not overlapping; at least one.  Neighbours without a hole are joined."""
        joined: list[Segment] = []
        for one in segments:
            if joined and joined[-1].end == one.start:
                one = Segment(start=joined[-1].start, length=joined.pop().length + one.length)  # noqa: PLW2901
            joined.append(one)
        self.segments = tuple(joined)
        self._starts = [one.start for one in joined]

    def find(self, gpa: int, length: int) -> int:
        """Number of the segment that holds all of ``length`` bytes.

        Raises `MemoryFault` with the first that is not in RAM.
        """
        index = bisect.bisect_right(self._starts, gpa) - 1
        one = self.segments[max(index, 0)]
        if index < 0 or gpa >= one.end:
            raise MemoryFault(gpa)
        if gpa + length > one.end:
            raise MemoryFault(one.end)
        return index


class HostSegments(Segments):
    """The part that all readers of a process share: where it has guest RAM."""

    def __init__(self, runs: Sequence[HostRun]) -> None:
        """``runs``: ascending by gpa, not overlapping; at least one."""
        super().__init__([Segment(start=one.start, length=one.length) for one in runs])
        self.runs = tuple(runs)
        self._run_starts = [one.start for one in runs]

    def hva(self, gpa: int) -> int:
        """Address in the process of a byte of guest RAM.  Raises `MemoryFault`."""
        self.find(gpa, 1)
        one = self.runs[bisect.bisect_right(self._run_starts, gpa) - 1]
        return one.hva + gpa - one.start

    def pieces(self, gpa: int, length: int) -> Iterator[tuple[int, int]]:
        """(address in the process, bytes) of what ``length`` bytes from ``gpa`` consist of, in their order.

        Raises `MemoryFault` before the first one.
        """
        self.find(gpa, length)
        index = bisect.bisect_right(self._run_starts, gpa) - 1
        while length > 0:
            one = self.runs[index]
            take = min(one.end - gpa, length)
            yield one.hva + gpa - one.start, take
            gpa, length, index = gpa + take, length - take, index + 1
