"""Exports guest-physical memory at an event to a raw file or an ELF core."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from live.core.errors import MemoryFault, NotPermitted, TargetError
from live.core.memory import PAGE_SIZE, Segment
from live.recording.past_memory import StateMemory

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_ET_CORE, _EM_X86_64, _PT_LOAD, _RWX = 4, 62, 1, 7


def export(memory: StateMemory, path: Path, *, force: bool = False) -> int:
    """Write guest-physical memory to ``path``: ELF if it ends in ``.elf``, else raw; return its size.

    The size is in bytes.  In a raw file the offset is the gpa.  The file is sparse: zero pages and holes take
    no space.  Pages that are not recorded read as zeros.  Raises `TargetError` if the file exists (without
    ``force``) or cannot be written.
    """
    segments = memory.segments
    places = _elf_places(segments) if path.suffix == ".elf" else [one.start for one in segments]
    try:
        with create(path, force) as out:
            if path.suffix == ".elf":
                out.write(_elf_header(segments, places))
            for number, page in _pages(memory):
                index = next(i for i, one in enumerate(segments) if one.start <= number << 12 < one.end)
                out.seek(places[index] + (number << 12) - segments[index].start)
                out.write(page)
            end = places[-1] + segments[-1].length
            out.truncate(end)
    except OSError as error:
        raise TargetError(f"{path} cannot be written ({error.strerror}); name a file elsewhere") from error
    return end


def _pages(memory: StateMemory) -> Iterator[tuple[int, bytes]]:
    ends = [one.end for one in memory.segments]
    for number in memory.nonzero():
        if not any(one.start <= number << 12 < end for one, end in zip(memory.segments, ends, strict=True)):
            continue
        try:
            yield number, memory.read(number << 12, PAGE_SIZE)
        except MemoryFault:
            continue


def _elf_places(segments: Sequence[Segment]) -> list[int]:
    """File offset of each segment."""
    at = -(-(_EHDR.size + _PHDR.size * len(segments)) // PAGE_SIZE) * PAGE_SIZE
    places = []
    for one in segments:
        places.append(at)
        at += one.length
    return places


def _elf_header(segments: Sequence[Segment], places: Sequence[int]) -> bytes:
    """As QEMU's dump-guest-memory: one PT_LOAD per segment of RAM, with its gpa in p_paddr (elf(5))."""
    count = len(segments)
    header = _EHDR.pack(
        _IDENT, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, count, 0, 0, 0
    )
    loads = [
        _PHDR.pack(_PT_LOAD, _RWX, place, 0, one.start, one.length, one.length, 0)
        for one, place in zip(segments, places, strict=True)
    ]
    return header + b"".join(loads)


@contextlib.contextmanager
def create(path: Path, force: bool) -> Iterator[BinaryIO]:
    """A new file, removed if writing it fails; an existing one is replaced only with ``force``.

    Raises `TargetError`, `NotPermitted`.
    """
    if force:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise TargetError(f"{path} is no ordinary file, so it is not replaced; name another one")
            path.unlink()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise TargetError(f"{path} exists already; name another file, or replace it with --force") from None
    except PermissionError:
        raise NotPermitted(f"{path} may not be created; name a file in a directory of yours") from None
    except OSError as error:
        raise TargetError(f"{path} cannot be created ({error.strerror}); name another file") from error
    with os.fdopen(descriptor, "wb") as out:
        try:
            yield out
        except BaseException:
            path.unlink(missing_ok=True)
            raise
