"""Memory images in files: raw, ELF core (``dump-guest-memory``), LiME.

Theory of operation.  Each is a list of pieces - gpa, length, offset in the file - over one mapping of the
file; `read` hands out views of it.  A raw file has no header that says where its bytes belong: the RAM file
of a virtual machine with more RAM than fits under the PCI hole goes on at 4 GiB behind a hole that is not
in the file.  Where the split is depends on the machine type, so the layouts are tried and the one in which
page tables lead to a kernel is taken (`symbols.placement`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from live.core.errors import MemoryFault, NotPermitted, TargetError
from live.core.memory import PAGE_SIZE, Segment
from symbols.placement import locate

GIB = 1 << 30
FOUR_GIB = 4 * GIB
# (RAM size from which on the machine type splits, end of the part below 4 GiB): q35, then i440fx; and i440fx
# with max-ram-below-4g, or other hypervisors, that leave 3.5 or 3.75 GiB.
SPLITS = (
    (0xB0000000, 0x80000000),
    (0xE0000000, 0xC0000000),
    (0xE0000000, 0xE0000000),
    (0xF0000000, 0xF0000000),
)
MAX_PIECES = 1 << 16

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


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes of guest memory from ``gpa``, at ``offset`` in the file."""

    gpa: int
    length: int
    offset: int


class Image:
    """A `MemoryReader` over a file.  ``kind`` says what the file is, in words."""

    def __init__(self, view: memoryview, pieces: Sequence[Piece], kind: str) -> None:
        """``pieces`` must not overlap; they are clipped to the file."""
        self._view = view
        self.kind = kind
        kept = sorted((_clipped(piece, len(view)) for piece in pieces), key=lambda piece: piece.gpa)
        self.pieces: list[Piece] = []
        for piece in kept:
            last = self.pieces[-1] if self.pieces else None
            if piece.length <= 0 or (last is not None and piece.gpa < last.gpa + last.length):
                continue
            if (
                last is not None
                and piece.gpa == last.gpa + last.length
                and piece.offset == last.offset + last.length
            ):
                self.pieces[-1] = Piece(last.gpa, last.length + piece.length, last.offset)
            else:
                self.pieces.append(piece)

    @property
    def segments(self) -> list[Segment]:
        """Guest RAM, ascending by gpa."""
        return [Segment(start=piece.gpa, length=piece.length) for piece in self.pieces]

    @property
    def flat(self) -> memoryview | None:
        """The whole file, if it is guest-physical memory from 0 on without holes."""
        if len(self.pieces) == 1 and self.pieces[0].gpa == 0:
            piece = self.pieces[0]
            return self._view[piece.offset : piece.offset + piece.length]
        return None

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        """Exactly ``length`` bytes from ``gpa``, without a copy unless pieces must be joined."""
        parts: list[memoryview] = []
        for piece in self.pieces:
            inside = gpa - piece.gpa
            if 0 <= inside < piece.length:
                here = min(length, piece.length - inside)
                parts.append(self._view[piece.offset + inside : piece.offset + inside + here])
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
        return Image(view, list(_core_pieces(view, name)), "an ELF core")
    if len(head) >= _LIME.size and _LIME.unpack_from(head)[0] == _LIME_MAGIC:
        return Image(view, list(_lime_pieces(view)), "a LiME image")
    return _raw(view)


def _clipped(piece: Piece, size: int) -> Piece:
    return Piece(piece.gpa, max(0, min(piece.length, size - piece.offset)), piece.offset)


def _raw(view: memoryview) -> Image:
    size = len(view) & -PAGE_SIZE
    layouts = [Image(view, [Piece(0, size, 0)], "a raw image")]
    for least, low in SPLITS:
        if size >= least and size > low:
            pieces = [Piece(0, low, 0), Piece(FOUR_GIB, size - low, low)]
            layouts.append(Image(view, pieces, f"a raw image with a hole from {low / GIB:g} to 4 GiB"))
    if len(layouts) > 1:
        for layout in layouts:
            # Page tables alone may fit in two layouts; text and tables of the kernel must be inside RAM in
            # the right one.
            if locate(layout):
                return layout
    return layouts[0]


def _lime_pieces(view: memoryview) -> Iterator[Piece]:
    at = 0
    for _ in range(MAX_PIECES):
        if at + _LIME.size > len(view):
            return
        magic, version, start, end, _reserved = _LIME.unpack_from(view, at)
        if magic != _LIME_MAGIC or version != 1 or end < start:
            return
        at += _LIME.size
        yield Piece(start, end - start + 1, at)
        at += end - start + 1


def _core_pieces(view: memoryview, name: str) -> Iterator[Piece]:
    # Here and in symbols.kernel_image only, since importing it takes longer than finding a kernel.
    from symbols.elf import load_segments  # noqa: PLC0415

    for segment in load_segments(view, name):
        yield Piece(segment.paddr, segment.filesz, segment.offset)
