"""The file format of recordings: tables, limits and packed values.  docs/RECORDING.md describes it.

Theory of operation
-------------------
A recording is one SQLite database.  Rows are only ever appended, in the order in which things happened.  The
ids of every table count from 1 without gaps (those of `block`: from `FIRST_PAGE`), so a reader notices a
missing row, and the state at a step is given by all rows up to it.

=============  ==================================================================================
``meta``       named values: ``recording`` (the header), ``symbols`` (ISF), ``dictionary``, ``end``
``block``      up to `BLOCK_PAGES` page versions in one zstd frame; its id is that of its first page
``generation`` the pages that were read between two refreshes: changed ones and unchanged ones
``step``       a snapshot (``look``), a trap or a frame: its arguments, and its last rows
``event``      an event as JSON, independent of any output schema
=============  ==================================================================================

A page version is the 4096 bytes read from one guest-physical page.  It is stored as the XOR with an older
version of the same page if there is one, so a page in which one word changed takes a few bytes.

Rules
-----
* A step's row is written in the same transaction as everything that it refers to, or in a later one.
* A reader trusts nothing: it bounds sizes before it decompresses, requires consecutive ids, and requires
  exactly this schema.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import zstandard

from live.core.errors import TargetError
from live.core.memory import PAGE_SIZE

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x50534552
"""``PSER`` in the database header: a process recording."""
VERSION = 1
"""``user_version``; incremented when an older reader would misread the file."""

SCHEMA = (
    ("meta", "CREATE TABLE meta (id INTEGER PRIMARY KEY, name TEXT NOT NULL, data BLOB NOT NULL)"),
    ("block", "CREATE TABLE block (id INTEGER PRIMARY KEY, data BLOB NOT NULL)"),
    ("generation", "CREATE TABLE generation (id INTEGER PRIMARY KEY, data BLOB NOT NULL)"),
    (
        "step",
        "CREATE TABLE step (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, time_ns INTEGER NOT NULL, "
        "late_ns INTEGER NOT NULL, cause TEXT NOT NULL, detail BLOB, generations INTEGER NOT NULL, "
        "events INTEGER NOT NULL, error TEXT)",
    ),
    (
        "event",
        "CREATE TABLE event (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, data BLOB NOT NULL)",
    ),
)

SNAPSHOT = "snapshot"
"""The cause of a look at the task list that belongs to the step before it."""
BLOCK_PAGES = 64
FAULT, ZERO, FIRST_PAGE = 1, 2, 16
"""Reserved page ids (unreadable, all zeros) and the first real one; 0 means none."""
MAX_DEPTH = 16
"""Longest chain of XORs from a page version to one that is stored as it is."""

MAX_META = 256 << 20
"""Largest symbol table, decompressed, in bytes; that of a large kernel with all types takes 40 MB."""
MAX_GENERATION = 64 << 20
MAX_SMALL = 16 << 20
"""Largest event or trap, decompressed, in bytes; a command line may take 128 KiB."""
_BLOCK_ENTRY = 4 + PAGE_SIZE
_COUNTS = struct.Struct("<IIII")
_ALL = 1
_SWAP = sys.byteorder != "little"


def damaged(path: object, what: str) -> TargetError:
    """The error for impossible content of a recording; ``what`` names it."""
    return TargetError(
        f"{path} is damaged: {what}; what lies before it can be read with --count, or make the recording anew"
    )


class Generation(NamedTuple):
    """The pages that were read between two refreshes; page numbers are gpa / 4096.

    ``changed``, ``ids``: page numbers with a new version, and the ids of these versions.  ``same``: pages
    whose content was that of their last recorded version.  ``whole``: this completes a frame: all of guest
    RAM was read, and pages that no generation up to here names are all zeros.
    """

    changed: Sequence[int]
    ids: Sequence[int]
    same: Sequence[int]
    whole: bool


def pack_generation(generation: Generation) -> bytes:
    """The stored form: flags, count changed, count same, 0, then three arrays; all little-endian u32."""
    changed, ids, same, whole = generation
    head = _COUNTS.pack(_ALL if whole else 0, len(changed), len(same), 0)
    return head + _u32(changed) + _u32(ids) + _u32(same)


def unpack_generation(raw: bytes) -> Generation:
    """The inverse of `pack_generation`.  Raises `ValueError`."""
    if len(raw) < _COUNTS.size:
        raise ValueError("a generation is too short")
    flags, changes, unchanged, _ = _COUNTS.unpack_from(raw)
    if len(raw) != _COUNTS.size + 8 * changes + 4 * unchanged:
        raise ValueError("a generation has another length than it says")
    at = _COUNTS.size
    changed = _from_u32(raw[at : at + 4 * changes])
    ids = _from_u32(raw[at + 4 * changes : at + 8 * changes])
    same = _from_u32(raw[at + 8 * changes :])
    return Generation(changed, ids, same, bool(flags & _ALL))


def _u32(numbers: Sequence[int]) -> bytes:
    packed = array("I", numbers)
    if _SWAP:
        packed.byteswap()
    return packed.tobytes()


def _from_u32(raw: bytes) -> array[int]:
    numbers = array("I")
    numbers.frombytes(raw)
    if _SWAP:
        numbers.byteswap()
    return numbers


def pack_block(bases: Sequence[int], pages: Sequence[bytes]) -> bytes:
    """The stored form of a block: u32 base id of each page (0: none), then 4096 bytes for each page."""
    return _u32(bases) + b"".join(pages)


def unpack_block(raw: bytes) -> tuple[Sequence[int], Sequence[bytes]]:
    """(base ids, stored pages), the inverse of `pack_block`.  Raises `ValueError`."""
    count, rest = divmod(len(raw), _BLOCK_ENTRY)
    if rest or not 0 < count <= BLOCK_PAGES:
        raise ValueError("a block of pages has an impossible length")
    start = 4 * count
    pages = [raw[start + i * PAGE_SIZE : start + (i + 1) * PAGE_SIZE] for i in range(count)]
    return _from_u32(raw[:start]), pages


MAX_BLOCK = BLOCK_PAGES * _BLOCK_ENTRY


def difference(page: bytes, base: bytes) -> bytes:
    """The XOR of two pages; applied again, it gives the page back."""
    number = int.from_bytes(page, "little") ^ int.from_bytes(base, "little")
    return number.to_bytes(PAGE_SIZE, "little")


class Expander:
    """Decompresses zstd frames up to a given size."""

    def __init__(self, dictionary: bytes = b"") -> None:
        """``dictionary``: the raw-content dictionary of small values, empty for none."""
        shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self._plain = zstandard.ZstdDecompressor()
        self._small = zstandard.ZstdDecompressor(dict_data=shared) if dictionary else self._plain

    def expand(self, data: bytes, limit: int, *, small: bool = False) -> bytes:
        """The content of a zstd frame.  Raises `ValueError` if it is damaged or exceeds ``limit`` bytes.

        ``small``: it was compressed with the dictionary.
        """
        try:
            parameters = zstandard.get_frame_parameters(data)
            # The size in the frame's header is what is allocated, so it is checked first.
            if not 0 <= parameters.content_size <= limit:
                raise ValueError(f"something compressed would have more than {limit} bytes")
            decompressor = self._small if small else self._plain
            return decompressor.decompress(data, max_output_size=limit)
        except zstandard.ZstdError as error:
            raise ValueError(f"something compressed is broken ({error})") from error
