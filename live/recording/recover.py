"""Rolls back the interrupted commit of a recording whose writer was killed.

Theory of operation
-------------------
During a commit SQLite keeps the original content of changed pages in ``FILE-journal``.  A writer that is
killed in these milliseconds leaves the journal behind, and SQLite rolls back when the file is next opened
for writing.  Recordings are opened read-only, and SQLite must not process a journal from a stranger: it may
delete the file that the journal names.  So the rollback is done here, on a private copy
(https://www.sqlite.org/fileformat2.html, section 3): original pages are written back and the file gets its
original length.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from live.recording.format import damaged

_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER = struct.Struct(">8sIIIII")  # magic, records, nonce, pages before, sector size, page size
_NUMBER = struct.Struct(">I")
_UNKNOWN = 0xFFFF_FFFF


def journal_of(path: Path) -> Path:
    """The path of SQLite's rollback journal for a database."""
    return path.with_name(path.name + "-journal")


def roll_back(path: Path, copy: Path) -> None:
    """Copy ``path`` to ``copy``, as it was before the commit to which its journal belongs.

    Raises `TargetError` if the journal is damaged or no journal, `OSError`.
    """
    shutil.copyfile(path, copy)
    with journal_of(path).open("rb") as journal, copy.open("r+b") as database:
        length: int | None = None
        for pages, page_size, number, content in _records(journal, path):
            if length is None:
                length = pages * page_size
            if number <= pages:
                database.seek((number - 1) * page_size)
                database.write(content)
        if length is not None:
            database.truncate(length)


def _records(journal: BinaryIO, path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """(pages before the commit, page size, page number, original content) of every valid record."""
    size = os.fstat(journal.fileno()).st_size
    at, first = 0, True
    while at + _HEADER.size <= size:
        journal.seek(at)
        magic, count, nonce, pages, sector, page_size = _HEADER.unpack(journal.read(_HEADER.size))
        if magic != _MAGIC:
            if first:
                raise damaged(path, f"{journal_of(path).name} is no journal of it: delete that one")
            return
        if not _sound(sector, 32) or not _sound(page_size, 512) or pages * page_size > 1 << 44:
            raise damaged(path, f"{journal_of(path).name} has an impossible header: delete that one")
        record = 8 + page_size
        if count == _UNKNOWN:
            count = (size - at - sector) // record
        journal.seek(at + sector)
        for _ in range(count):
            data = journal.read(record)
            if len(data) < record:
                return
            content = data[4:-4]
            if _NUMBER.unpack(data[-4:])[0] != _checksum(nonce, content):
                return  # not synced before the kill, so its page in the database was not overwritten
            yield pages, page_size, _NUMBER.unpack(data[:4])[0], content
        first = False
        end = at + sector + count * record
        at = -(-end // sector) * sector
        if not count:
            return


def _sound(size: int, least: int) -> bool:
    return least <= size <= 65536 and size & (size - 1) == 0


def _checksum(nonce: int, page: bytes) -> int:
    return (nonce + sum(page[i] for i in range(len(page) - 200, 0, -200))) & 0xFFFF_FFFF
