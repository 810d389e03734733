"""Memory images in files: raw, ELF core (``dump-guest-memory``), LiME.

Theory of operation.  Each is a list of runs over one mapping of the file; `read` hands out views of it.  A
raw file has no header that says where its bytes belong: `symbols.ram_file` finds out.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from live.core.errors import MemoryFault, NotPermitted, TargetError
from live.core.memory import PAGE_SIZE, InPlace, Run, Segment
from symbols import ram_file

GIB = 1 << 30
MAX_RUNS = 1 << 16

_LIME = struct.Struct("<IIQQQ")
_LIME_MAGIC = 0x4C694D45
_REFUSED = (
    (b"KDUMP   ", "a kdump-compressed dump", "make an ELF dump: dump-guest-memory without -z, -l or -s"),
    (b"makedumpfile\0", "a flattened makedumpfile dump", "convert it with makedumpfile -R, then to ELF"),
    (b"DISKDUMP", "a diskdump", "make an ELF dump of the guest instead"),
    (b"QFI\xfb", "a qcow2 disk image, not memory", "give the guest's RAM file or an ELF dump of it"),
    (
        b"QEVM",
        "a migration stream or savevm state",
        "make an ELF dump: dump-guest-memory FILE in the monitor",
    ),
    (b"\xd2\xbe\xd2\xbe", "a VMware snapshot state", "give the .vmem file beside it"),
    (b"\xd1\xba\xd1\xba", "a VMware snapshot state", "give the .vmem file beside it"),
)


class Image(InPlace):
    """A `live.core.memory.MemoryReader` over a file.  ``kind`` says what the file is, in words."""

    def __init__(self, view: memoryview, runs: Sequence[Run], kind: str) -> None:
        """``runs`` must not overlap; they are clipped to the file."""
        self._view = view
        self.kind = kind
        self.description = f"mapped from {kind}, no copies"
        kept = sorted((_clipped(run, len(view)) for run in runs), key=lambda run: run.start)
        self.runs: list[Run] = []
        for run in kept:
            last = self.runs[-1] if self.runs else None
            if run.length <= 0 or (last is not None and run.start < last.start + last.length):
                continue
            if (
                last is not None
                and run.start == last.start + last.length
                and run.offset == last.offset + last.length
            ):
                self.runs[-1] = Run(last.start, last.offset, last.length + run.length)
            else:
                self.runs.append(run)
        self.segments = [Segment(start=run.start, length=run.length) for run in self.runs]

    @property
    def flat(self) -> memoryview | None:
        """The whole file, if it is guest-physical memory from 0 on without holes."""
        if len(self.runs) == 1 and self.runs[0].start == 0:
            run = self.runs[0]
            return self._view[run.offset : run.offset + run.length]
        return None

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        """Exactly ``length`` bytes from ``gpa``, without a copy unless runs must be joined.

        Raises `MemoryFault`.
        """
        parts: list[memoryview] = []
        for run in self.runs:
            inside = gpa - run.start
            if 0 <= inside < run.length:
                here = min(length, run.length - inside)
                parts.append(self._view[run.offset + inside : run.offset + inside + here])
                gpa += here
                length -= here
                if not length:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        if not length and not parts:
            return b""
        raise MemoryFault(gpa)


def open_file(path: Path) -> memoryview:
    """A read-only mapping of a file.  Raises `TargetError`."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except PermissionError as error:
        raise NotPermitted(f"{path} may not be read: run as a user who may, or change its mode") from error
    except ValueError as error:
        raise TargetError(f"{path} is empty: give a memory image or a kernel") from error
    except OSError as error:
        raise TargetError(f"{path} cannot be opened ({error.strerror}): check the name") from error


def image_of(view: memoryview, name: str) -> Image:
    """The image in a mapped file.  Raises `TargetError` for formats that would be read wrongly."""
    head = bytes(view[:64])
    for magic, what, instead in _REFUSED:
        if head.startswith(magic):
            raise TargetError(f"{name} is {what}: {instead}")
    if head.startswith(b"\x7fELF"):
        return Image(view, list(_core_runs(view, name)), "an ELF core")
    if len(head) >= _LIME.size and _LIME.unpack_from(head)[0] == _LIME_MAGIC:
        return Image(view, list(_lime_runs(view)), "a LiME image")
    return _raw(view)


def _clipped(run: Run, size: int) -> Run:
    return Run(run.start, run.offset, max(0, min(run.length, size - run.offset)))


def _raw(view: memoryview) -> Image:
    size = len(view) & -PAGE_SIZE
    runs = ram_file.best(size, lambda runs: Image(view, runs, "a raw image"), from_start=True)
    if runs is None or len(runs) < 2:
        return Image(view, [Run(0, 0, size)], "a raw image")
    return Image(view, runs, f"a raw image with a hole from {runs[0].length / GIB:g} to 4 GiB")


def _lime_runs(view: memoryview) -> Iterator[Run]:
    at = 0
    for _ in range(MAX_RUNS):
        if at + _LIME.size > len(view):
            return
        magic, version, start, end, _reserved = _LIME.unpack_from(view, at)
        if magic != _LIME_MAGIC or version != 1 or end < start:
            return
        at += _LIME.size
        yield Run(start, at, end - start + 1)
        at += end - start + 1


def _core_runs(view: memoryview, name: str) -> Iterator[Run]:
    # Here and in symbols.kernel_image only, since importing it takes longer than finding a kernel.
    from symbols.elf import load_segments  # noqa: PLC0415

    for segment in load_segments(view, name):
        yield Run(segment.paddr, segment.offset, segment.filesz)
