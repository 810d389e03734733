"""RAM that is found in a process, and not yet placed in guest-physical space."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from live.core.errors import MemoryFault
from live.core.memory import InPlace, MemoryReader, Run, Segment
from live.hypervisors.host.memory import HostMemory
from live.hypervisors.host.segments import HostRun, Segments


class ProcessRam:
    """A `live.core.hypervisor.UnplacedRam`; ``memory`` is the reader of RAM as it is placed now."""

    def __init__(self, plain: HostMemory) -> None:
        """``plain`` reads the pieces of RAM, one behind the other from gpa 0; it is ours from now on."""
        self._plain = plain
        self._readers = [plain]
        self.size = plain.runs[-1].end
        self.memory: MemoryReader = plain

    def placed(self, runs: Sequence[Run]) -> MemoryReader:
        """A reader for RAM that lies so, for trying: nothing is mapped anew.  Raises as `place`."""
        return Rearranged(self._plain, _checked(runs, self.size))

    def place(self, runs: Sequence[Run]) -> None:
        """From now on `memory` is laid out so; readers that it was before stay as they are until `close`.

        ``runs``: ascending by gpa, not overlapping, within RAM; raises `ValueError` if not.  Raises
        `GuestGone`.
        """
        layout = tuple(part for run in _checked(runs, self.size) for part in self._parts(run))
        known = next((one for one in self._readers if one.runs == layout), None)
        if known is not None:
            self.memory = known
            return
        try:
            reader = self._plain.laid_out(layout)
        except OSError:  # huge pages cannot be mapped at any address
            self.memory = self.placed(runs)
            return
        self._readers.append(reader)
        self.memory = reader

    def close(self) -> None:
        """Let go of the memory.  Safe to call twice."""
        for one in self._readers:
            one.close()

    def _parts(self, run: Run) -> list[HostRun]:
        """Where the process has a run: one part for each piece that it touches."""
        end = run.offset + run.length
        parts = []
        for one in self._plain.runs:
            first, last = max(one.start, run.offset), min(one.end, end)
            if first < last:
                at = run.start + first - run.offset
                parts.append(HostRun(start=at, length=last - first, hva=one.hva + first - one.start))
        return parts


class Rearranged(Segments, InPlace):
    """Memory that lies elsewhere: each run names what another reader has at its offset."""

    flat: memoryview | None = None

    def __init__(self, source: MemoryReader, runs: Sequence[Run]) -> None:
        """``runs``: ascending by gpa, not overlapping; their offsets are gpas of ``source``."""
        super().__init__([Segment(start=run.start, length=run.length) for run in runs])
        self._source, self._runs = source, runs
        self._begins = [run.start for run in runs]
        self.description = source.description

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        """See `live.core.memory.MemoryReader.read`; a copy where it crosses runs."""
        self.find(gpa, length)
        index = bisect.bisect_right(self._begins, gpa) - 1
        parts: list[bytes | memoryview] = []
        while True:
            run = self._runs[index]
            inside = gpa - run.start
            take = min(run.length - inside, length)
            try:
                parts.append(self._source.read(run.offset + inside, take))
            except MemoryFault as fault:
                raise MemoryFault(fault.address - run.offset + run.start, fault.reason) from None
            gpa, length, index = gpa + take, length - take, index + 1
            if not length:
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _checked(runs: Sequence[Run], size: int) -> Sequence[Run]:
    end = 0
    for run in runs:
        if run.start < end or run.length <= 0 or run.offset < 0 or run.offset + run.length > size:
            raise ValueError(f"{run} does not lie in {size:#x} bytes of RAM, or overlaps the run before it")
        end = run.start + run.length
    if not runs:
        raise ValueError("RAM has to be somewhere")
    return runs
