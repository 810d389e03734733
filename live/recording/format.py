"""The file format of recordings: tables, numbers and packed values.  docs/RECORDING.md tells it to people.

Theory of operation
-------------------
A recording is one SQLite database to which rows are only ever appended, in the order in which things
happened.  Every table has a rowid that counts from 1 without gaps, so a reader can tell damage from data,
and the state at any step is "everything up to there".

=============  ==================================================================================
``meta``       named values: ``recording`` (what and whose), ``symbols`` (ISF), ``dictionary``, ``end``
``block``      up to `BLOCK_PAGES` page versions in one zstd frame; its id is that of its first page
``generation`` the pages that were read between two refreshes: which changed, which were as before
``step``       a look, a trap, a frame: the arguments of the step, and where its rows end
``event``      an event as neutral JSON, independent of any output schema
=============  ==================================================================================

A page version is the 4096 bytes that were seen at one guest-physical page; stored as the XOR with an older
version of the same page, where there is one, so that a page in which one word changed costs a few bytes.

Rules
-----
* A step's row is written in the same transaction as all that it refers to, or in a later one.
* Nothing is trusted on reading: sizes are bounded before anything is decompressed, ids must count, the
  schema must be this one to the letter.
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
"""``user_version``; raised when an older reader would misread the file."""

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

BLOCK_PAGES = 64
FAULT, ZERO, FIRST_PAGE = 1, 2, 16
"""Page ids with a meaning of their own: unreadable, all zeros; 0 is no page, real ones begin at 16."""
MAX_DEPTH = 16
"""Versions that a page may be away, by XOR, from one that stands alone."""

MAX_META = 256 << 20
"""Bytes of a decompressed symbol table; a complete one of a large kernel has 40 MB."""
MAX_GENERATION = 64 << 20
MAX_SMALL = 16 << 20
"""Bytes of an event or a trap, decompressed; a command line alone may have 128 KB."""
_BLOCK_ENTRY = 4 + PAGE_SIZE
_COUNTS = struct.Struct("<IIII")
_ALL = 1
_SWAP = sys.byteorder != "little"


def damaged(path: object, what: str) -> TargetError:
    """The error for a file whose content cannot be."""
    return TargetError(
        f"{path} is damaged: {what}; what lies before it can be read with --count, or make the recording anew"
    )


class Generation(NamedTuple):
    """Which pages were read between two refreshes; page numbers are gpa / 4096.

    ``changed`` and ``ids`` run in parallel: pages whose version is new, and its id.  ``same``: pages that
    were read and held what they held when last seen.  ``whole``: every page of guest RAM was read, and
    those that no generation up to here names hold zeros.
    """

    changed: Sequence[int]
    ids: Sequence[int]
    same: Sequence[int]
    whole: bool


def pack_generation(generation: Generation) -> bytes:
    """The raw form: four numbers (flags, changes, unchanged, 0), then three arrays, all u32 little-endian."""
    changed, ids, same, whole = generation
    head = _COUNTS.pack(_ALL if whole else 0, len(changed), len(same), 0)
    return head + _u32(changed) + _u32(ids) + _u32(same)


def unpack_generation(raw: bytes) -> Generation:
    """The inverse; raises `ValueError`."""
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
    """The raw form of a block: the id of each page's base (0: none) as u32, then the XORs of 4096 bytes."""
    return _u32(bases) + b"".join(pages)


def unpack_block(raw: bytes) -> tuple[Sequence[int], Sequence[bytes]]:
    """(ids of the bases, the XORs); raises `ValueError`."""
    count, rest = divmod(len(raw), _BLOCK_ENTRY)
    if rest or not 0 < count <= BLOCK_PAGES:
        raise ValueError("a block of pages has an impossible length")
    start = 4 * count
    pages = [raw[start + i * PAGE_SIZE : start + (i + 1) * PAGE_SIZE] for i in range(count)]
    return _from_u32(raw[:start]), pages


MAX_BLOCK = BLOCK_PAGES * _BLOCK_ENTRY


def difference(page: bytes, base: bytes) -> bytes:
    """The XOR of two pages: its own inverse."""
    number = int.from_bytes(page, "little") ^ int.from_bytes(base, "little")
    return number.to_bytes(PAGE_SIZE, "little")


class Expander:
    """Decompresses, never beyond a bound that is known before."""

    def __init__(self, dictionary: bytes = b"") -> None:
        """``dictionary``: raw content that small values were compressed against."""
        shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self._plain = zstandard.ZstdDecompressor()
        self._small = zstandard.ZstdDecompressor(dict_data=shared) if dictionary else self._plain

    def expand(self, data: bytes, limit: int, *, small: bool = False) -> bytes:
        """The content of one zstd frame.  Raises `ValueError` if none, or longer than ``limit``."""
        try:
            parameters = zstandard.get_frame_parameters(data)
            # The frame's own word for its size is what is allocated: believe it only within bounds.
            if not 0 <= parameters.content_size <= limit:
                raise ValueError(f"something compressed would have more than {limit} bytes")
            decompressor = self._small if small else self._plain
            return decompressor.decompress(data, max_output_size=limit)
        except zstandard.ZstdError as error:
            raise ValueError(f"something compressed is broken ({error})") from error
