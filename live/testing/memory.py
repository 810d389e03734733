"""Checks of a `live.core.memory.MemoryReader`.

The guest may run meanwhile and change what is read, so two readings that have to be equal are taken until
they are (`agree`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest

from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, MemoryReader, Segment

_PROBE = 4 * PAGE_SIZE
_TRIES = 200
_FAR = (1 << 40, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 4, 1 << 64, 1 << 100)
"""gpas that no guest has: no architecture has more than 52 bits of them today."""


def agree(one: Callable[[], bytes], other: Callable[[], bytes], what: str) -> None:
    """Both give the same, if not at once then in between two changes of the guest."""
    for _ in range(_TRIES):
        if one() == other():
            return
    raise AssertionError(f"{what}: never the same in {_TRIES} tries")


def check_segments(segments: Sequence[Segment]) -> None:
    """Ascending by gpa, not overlapping, none empty."""
    for one in segments:
        assert one.start >= 0, f"{one} begins below 0"
        assert one.length > 0, f"{one} is empty"
    for before, behind in pairwise(segments):
        assert before.end <= behind.start, f"{before} and {behind} overlap, or do not ascend"


def runs_of(segments: Sequence[Segment]) -> list[Segment]:
    """Segments, those that touch put together: a read may cross from one into the other."""
    runs: list[Segment] = []
    for one in segments:
        if runs and runs[-1].end == one.start:
            joined = runs.pop()
            runs.append(Segment(start=joined.start, length=joined.length + one.length))
        else:
            runs.append(one)
    return runs


def fault_of(memory: MemoryReader, gpa: int, length: int) -> MemoryFault:
    """The `MemoryFault` that this read raises; it has to."""
    with pytest.raises(MemoryFault) as caught:
        memory.read(gpa, length)
    return caught.value


def check_fault(memory: MemoryReader, gpa: int, length: int, first_bad: int) -> None:
    """The read fails, and says at which address first."""
    fault = fault_of(memory, gpa, length)
    assert fault.address == first_bad, f"read({gpa:#x}, {length:#x}) blames {fault.address:#x}: {fault}"
    assert fault.kind == "gpa", f"read({gpa:#x}, {length:#x}) raises a fault of a {fault.kind} address"


def check_exact(memory: MemoryReader, gpa: int, length: int) -> bytes:
    """Exactly so many bytes, which nobody can write through."""
    data = memory.read(gpa, length)
    assert len(data) == length, f"read({gpa:#x}, {length:#x}) gives {len(data):#x} bytes"
    if isinstance(data, memoryview):
        assert data.readonly, f"read({gpa:#x}, {length:#x}) gives a view through which RAM can be changed"
        assert (data.itemsize, data.ndim) == (1, 1), f"read({gpa:#x}, {length:#x}) gives no view of bytes"
    return bytes(data)


def gaps(outer: Segment, inner: Sequence[Segment]) -> Iterator[Segment]:
    """The parts of ``outer`` that none of ``inner`` (ascending) covers."""
    at = outer.start
    for one in inner:
        if one.end <= outer.start or one.start >= outer.end:
            continue
        if one.start > at:
            yield Segment(start=at, length=one.start - at)
        at = max(at, one.end)
    if at < outer.end:
        yield Segment(start=at, length=outer.end - at)


class MemoryContract:
    """What every reader of guest memory has to do; override the fixture `memory`."""

    @pytest.fixture
    def memory(self) -> MemoryReader:
        """The reader to be checked."""
        raise NotImplementedError("override the fixture `memory`: it gives a MemoryReader")

    def test_memory_is_described(self, memory: MemoryReader) -> None:
        """In one phrase, for the output."""
        assert memory.description.strip(), "no description"
        assert "\n" not in memory.description

    def test_segments_ascend_and_do_not_overlap(self, memory: MemoryReader) -> None:
        """And there is RAM at all."""
        assert memory.segments, "no RAM at all"
        check_segments(memory.segments)

    def test_reads_at_the_edges_of_a_segment_are_exact(self, memory: MemoryReader) -> None:
        """Its first and last bytes, words and pages; nothing; across pages."""
        for one in memory.segments:
            for length in (0, 1, 8, PAGE_SIZE, PAGE_SIZE + 1, _PROBE):
                if length <= one.length:
                    check_exact(memory, one.start, length)
                    check_exact(memory, one.end - length if length else one.end - 1, length)
            if one.length >= 2 * PAGE_SIZE:
                check_exact(memory, one.start + PAGE_SIZE - 3, 8)

    def test_a_read_is_what_its_pieces_are(self, memory: MemoryReader) -> None:
        """However it is cut."""
        for one in memory.segments:
            start, length = one.start, min(one.length, _PROBE)

            def whole(start: int = start, length: int = length) -> bytes:
                memory.refresh()
                return bytes(memory.read(start, length))

            for step in (PAGE_SIZE, 1000):

                def pieces(start: int = start, length: int = length, step: int = step) -> bytes:
                    return b"".join(
                        bytes(memory.read(start + at, min(step, length - at)))
                        for at in range(0, length, step)
                    )

                agree(whole, pieces, f"{length:#x} bytes from {start:#x}, and in pieces of {step}")

    def test_a_fault_names_the_first_bad_address(self, memory: MemoryReader) -> None:
        """Before, behind, and across the end of RAM."""
        runs = runs_of(memory.segments)
        for number, one in enumerate(runs):
            check_fault(memory, one.end, 1, one.end)
            check_fault(memory, one.end - 1, 2, one.end)
            check_fault(memory, one.end - min(one.length, 100), PAGE_SIZE + 200, one.end)
            check_fault(memory, one.start, one.length + 1, one.end)
            before = runs[number - 1].end if number else 0
            if one.start > before:
                check_fault(memory, one.start - 1, 2, one.start - 1)
                inside = (before + one.start) // 2 | 5
                check_fault(memory, inside, 8, inside)

    def test_no_address_is_too_strange(self, memory: MemoryReader) -> None:
        """Negative, far behind RAM, and lengths that nothing has; nothing is allocated for them."""
        for gpa in (-1, -PAGE_SIZE, -(1 << 64), -5):
            check_fault(memory, gpa, 1, gpa)
            check_fault(memory, gpa, 2 * PAGE_SIZE, gpa)
        last = runs_of(memory.segments)[-1]
        for gpa in _FAR:
            if gpa >= last.end:
                check_fault(memory, gpa, 8, gpa)
        for length in (1 << 47, 1 << 62, 1 << 70):
            check_fault(memory, last.start, length, last.end)

    def test_flat_shows_what_is_read(self, memory: MemoryReader) -> None:
        """All of guest-physical space, read-only; zeros in the holes."""
        flat = memory.flat
        if flat is None:
            pytest.skip("this memory is not flat: it declares none")
        assert flat.readonly, "flat can be written through"
        assert (flat.itemsize, flat.ndim) == (1, 1)
        assert len(flat) >= memory.segments[-1].end, "flat ends before RAM does"
        for one in memory.segments:
            length = min(one.length, PAGE_SIZE)
            for start in (one.start, one.end - length):
                agree(
                    lambda start=start, length=length: bytes(flat[start : start + length]),  # type: ignore[misc]
                    lambda start=start, length=length: bytes(memory.read(start, length)),  # type: ignore[misc]
                    f"flat and read at {start:#x}",
                )
        for hole in gaps(Segment(start=0, length=memory.segments[-1].end), memory.segments):
            for at in (hole.start, hole.end - min(hole.length, PAGE_SIZE)):
                length = min(hole.length, PAGE_SIZE)
                assert not any(flat[at : at + length]), f"the hole at {at:#x} does not read as zeros"

    def test_what_is_not_populated_is_zeros(self, memory: MemoryReader) -> None:
        """And what is populated is RAM."""
        populated = memory.populated()
        check_segments(populated)
        runs = runs_of(memory.segments)
        for one in populated:
            assert any(run.start <= one.start and one.end <= run.end for run in runs), f"{one} is not in RAM"
        for segment in memory.segments:
            for gap in gaps(segment, populated):
                length = min(gap.length, PAGE_SIZE)
                for at in (gap.start, gap.end - length):
                    if any(memory.read(at, length)):
                        now = memory.populated()  # the guest may have come to need it
                        assert any(one.start < at + length and at < one.end for one in now), (
                            f"{length:#x} bytes at {at:#x} are not populated, and hold something"
                        )

    def test_refreshing_and_resting(self, memory: MemoryReader) -> None:
        """A rest is a finite time, for what was read since the one before."""
        memory.refresh()
        memory.read(memory.segments[0].start, 8)
        for rest in (memory.rest(), memory.rest()):
            assert isinstance(rest, float)
            assert math.isfinite(rest)
            assert rest >= 0
        assert memory.rest() == 0, "a rest is asked for, and nothing was read since the last one"
        memory.refresh()
