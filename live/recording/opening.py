"""Opens a recording: refuses other files, creates nothing beside it, rolls back an interrupted commit."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
from pathlib import Path

from live.core.errors import NoTarget, NotPermitted, TargetError
from live.recording import format, recover
from live.recording.file import Recording


def is_recording(start: bytes) -> bool:
    """Whether a file whose first 100 bytes are ``start`` claims to be a recording."""
    return start.startswith(format.MAGIC) and start[68:72] == format.APPLICATION_ID.to_bytes(4, "big")


def open_recording(path: Path | str) -> Recording:
    """Open a recording.  Raises `NoTarget`, `NotPermitted`, `TargetError`, each with what to do next."""
    path = Path(path)
    _check_file(path)
    try:
        return _connect(path, path)
    except _NeedsRecovery:
        pass
    with contextlib.ExitStack() as stack:
        # The open copy outlives its directory entry.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pse-")))
        try:
            recover.roll_back(path, directory / "copy.pse")
        except OSError as error:
            raise TargetError(
                f"{path}: its writer was killed within a commit; a copy could not be rolled back ({error})"
            ) from error
        _check_file(directory / "copy.pse", path)
        return _connect(directory / "copy.pse", path)


class _NeedsRecovery(Exception):
    """There is a hot journal: a commit was interrupted."""


def _connect(path: Path, name: Path) -> Recording:
    try:
        connection = sqlite3.connect(path.absolute().as_uri() + "?mode=ro", uri=True, check_same_thread=False)
    except sqlite3.Error as error:
        raise TargetError(f"{name} cannot be opened ({error})") from error
    try:
        if hasattr(connection, "setlimit"):  # Python 3.11
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, format.MAX_META)
        try:
            for pragma in (
                "trusted_schema = OFF",
                "cell_size_check = ON",
                "query_only = ON",
                "mmap_size = 0",
            ):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.OperationalError as error:
            if path == name and recover.journal_of(path).exists():
                raise _NeedsRecovery from error
            raise format.damaged(name, str(error)) from error
        except (sqlite3.Error, UnicodeError) as error:  # SQLite quotes what it cannot parse
            raise format.damaged(name, repr(str(error))) from error
        return Recording(name, connection)
    except BaseException:
        connection.close()
        raise


def _check_file(path: Path, name: Path | None = None) -> None:
    """Refuse a file that is no recording by its first 100 bytes, before SQLite opens it."""
    name = name or path
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NoTarget(f"there is no file {name}; make a recording with: pse record -o {name}") from None
    except PermissionError:
        raise NotPermitted(f"{name} may not be read; run as its owner, or as root") from None
    except OSError as error:
        raise TargetError(f"{name} cannot be opened ({error.strerror})") from error
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        start = os.pread(descriptor, 100, 0) if regular else b""
    finally:
        os.close(descriptor)
    if not is_recording(start):
        raise TargetError(f"{name} is no recording; make one with: pse record -o FILE")
    version = int.from_bytes(start[60:64], "big")
    if version != format.VERSION:
        newer = "a newer" if version > format.VERSION else "another"
        raise TargetError(
            f"{name} has format version {version}, made by {newer} version of pse; "
            f"this one reads version {format.VERSION}"
        )
    if start[18:20] != b"\x01\x01":  # 2: write-ahead log, for which SQLite would create files beside it
        raise format.damaged(name, "it is in a mode that recordings are never in")
