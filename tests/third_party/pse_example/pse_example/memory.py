"""Guest memory in a file, offsets being guest-physical addresses."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from live.core.errors import GuestGone, MemoryFault
from live.core.memory import InPlace, Segment


class FileMemory(InPlace):
    """A `live.core.memory.MemoryReader`: the file is mapped, so a read copies nothing."""

    description = "mapped from a file, no copies"

    def __init__(self, path: Path) -> None:
        """Raises `OSError`."""
        with path.open("rb") as file:
            self._descriptor = os.dup(file.fileno())
            self.flat: memoryview | None = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.segments = (Segment(start=0, length=len(self.flat)),)

    def read(self, gpa: int, length: int) -> memoryview:
        """A view."""
        if self.flat is None:
            raise GuestGone("The guest's memory was closed; attach to the guest again.")
        if not 0 <= gpa < len(self.flat):
            raise MemoryFault(gpa)
        if gpa + length > len(self.flat):
            raise MemoryFault(len(self.flat))
        return self.flat[gpa : gpa + length]

    def populated(self) -> Sequence[Segment]:
        """What the file has blocks for."""
        found: list[Segment] = []
        at = 0
        while self.flat is not None:
            try:
                start = os.lseek(self._descriptor, at, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                break
            at = os.lseek(self._descriptor, start, os.SEEK_HOLE)
            found.append(Segment(start=start, length=at - start))
        return found

    def close(self) -> None:
        """Unmapped with the last view of it."""
        if self.flat is not None:
            self.flat = None
            os.close(self._descriptor)
