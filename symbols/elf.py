"""The loadable segments of an ELF file, read by pyelftools; all its errors become `TargetError`."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO, cast

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from live.core.errors import TargetError

MAX_SEGMENTS = 1 << 16
# What pyelftools raises on damaged input.
_FAILURES = (
    ELFError,
    ConstructError,
    struct.error,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """A PT_LOAD segment; sizes in bytes, ``filesz`` is cut at the end of the file."""

    vaddr: int
    paddr: int
    offset: int
    filesz: int
    memsz: int


def is_core(view: bytes | memoryview) -> bool:
    """Whether the header of an ELF file says that it is a core (ET_CORE)."""
    return len(view) >= 18 and int.from_bytes(view[16:18], "little") == 4


def load_segments(view: bytes | memoryview, name: str) -> list[LoadSegment]:
    """All PT_LOAD segments of an x86-64 ELF file; ``name`` is for messages.  Raises `TargetError`."""
    try:
        file = ELFFile(cast(BinaryIO, _Reader(view)))
        if file.elfclass != 64 or not file.little_endian or file["e_machine"] != "EM_X86_64":
            raise TargetError(f"{name} is an ELF file of another machine: only x86-64 is supported")
        count = file.num_segments()
        if count > MAX_SEGMENTS:
            raise TargetError(f"{name} claims {count} segments: the file is damaged, copy it again")
        segments = []
        for number in range(count):
            header = file.get_segment(number).header
            if header["p_type"] == "PT_LOAD":
                segments.append(
                    LoadSegment(
                        header["p_vaddr"],
                        header["p_paddr"],
                        header["p_offset"],
                        max(0, min(header["p_filesz"], len(view) - header["p_offset"])),
                        header["p_memsz"],
                    )
                )
    except _FAILURES as error:
        raise TargetError(f"{name} is a damaged ELF file ({error}): copy it again") from error
    if not segments:
        raise TargetError(f"{name} is an ELF file without loadable segments: give a vmlinux or an ELF dump")
    return segments


class _Reader(io.RawIOBase):
    """A view as a stream for pyelftools, without a copy."""

    def __init__(self, view: bytes | memoryview) -> None:
        self._view = memoryview(view)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        data = bytes(self._view[self._at : end])
        self._at += len(data)
        return data
