"""The writing side of a recording: a queue, and a thread that packs, compresses, inserts and commits.

Theory of operation
-------------------
`Sink.put` is called while a vCPU may be held, so everything slow is done by a thread, which commits every
`COMMIT_S` seconds.  The queue is bounded in bytes: if the disk cannot keep up, `Sink.put` waits.

The file is in SQLite's rollback-journal mode.  It is a single file except during a commit, and committed
rows survive SIGKILL.  If the disk is full, the transaction is rolled back, the next `Sink.put` raises, and
everything committed before can be replayed.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from live.core.errors import NotPermitted, TargetError
from live.core.events import Event
from live.core.memory import PAGE_SIZE
from live.recording import codec, format, recover
from live.recording.header import Header

COMMIT_S = 0.5
COMMIT_BYTES = 8 << 20
QUEUE_BYTES = 32 << 20
"""Largest size of the queue in bytes."""
_DICTIONARY = 64 << 10


class Page(NamedTuple):
    """A page version to store; ``before`` is the content of the version with id ``base`` (0: none)."""

    id: int
    content: bytes
    base: int
    before: bytes | None


class Item(NamedTuple):
    """A queue entry: pages, generations, events, and their step (None: a later entry has it).

    ``step``: the row of the ``step`` table without ``detail``.
    """

    pages: list[Page]
    generations: list[format.Generation]
    step: tuple[Any, ...] | None
    detail: codec.Json | None
    events: Sequence[Event]

    @property
    def size(self) -> int:
        """Approximate size in memory, in bytes."""
        small = 200 + 2000 * len(self.events) + sum(8 * len(one.same) for one in self.generations)
        return small + 2 * PAGE_SIZE * len(self.pages)


class Sink:
    """A recording file and the thread that writes it."""

    def __init__(self, path: Path, header: Header, symbols: bytes, *, force: bool, level: int) -> None:
        """Create the file and start the thread; see `live.recording.writer.Writer`."""
        self.path = path
        self._connection = _create(path, force)
        self._queue: deque[Item] = deque()
        self._queued = 0
        self._condition = threading.Condition()
        self._closing: codec.Json | None = None
        self._problem: BaseException | None = None
        self._block: list[Page] = []
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self._small: zstandard.ZstdCompressor | None = None
        self._uncommitted, self._committed_at = 0, time.monotonic()
        self._meta = 0
        self.commits = 0
        """Commits so far."""
        self.waited_ns = 0
        """Time in ns that `put` waited because the queue was full."""
        try:
            self._begin(header, symbols, level)
        except sqlite3.Error as error:
            self._connection.close()
            raise self._failed(error) from error
        self._thread = threading.Thread(target=self._work, name="pse-recording", daemon=True)
        self._thread.start()

    def _begin(self, header: Header, symbols: bytes, level: int) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for _, statement in format.SCHEMA:
            execute(statement)
        execute(f"PRAGMA application_id = {format.APPLICATION_ID}")
        execute(f"PRAGMA user_version = {format.VERSION}")
        self._put_meta("recording", codec.dumps(header.encode()))
        self._put_meta("symbols", symbols, max(level, 9))
        execute("COMMIT")

    def _put_meta(self, name: str, value: bytes, level: int = 9) -> None:
        self._meta += 1
        data = zstandard.ZstdCompressor(level=level, write_checksum=True).compress(value)
        self._connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (self._meta, name, data))

    def put(self, item: Item) -> None:
        """Append to the queue; wait while it is full.  Raises `TargetError` if writing has failed."""
        size = item.size
        with self._condition:
            if self._queued + size > QUEUE_BYTES and self._queue:
                began = time.monotonic_ns()
                while self._queued + size > QUEUE_BYTES and self._queue and self._problem is None:
                    self._condition.wait()
                self.waited_ns += time.monotonic_ns() - began
            if self._problem is not None:
                raise self._failed(self._problem) from self._problem
            self._queue.append(item)
            self._queued += size
            self._condition.notify_all()

    def close(self, reason: str = "done") -> None:
        """Write the rest of the queue and the ``end`` value.  Raises `TargetError` if writing has failed."""
        with self._condition:
            if self._closing is None:
                self._closing = {"reason": reason, "time_ns": time.time_ns()}
            self._condition.notify_all()
        self._thread.join()
        if self._problem is not None:
            raise self._failed(self._problem) from self._problem

    def _failed(self, error: BaseException) -> TargetError:
        return TargetError(
            f"the recording {self.path} cannot be written any more ({error}); what it holds up to now can be "
            "replayed; make room, and record into another file"
        )

    # -- called by the thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._wait():
                with self._condition:
                    item = self._queue.popleft() if self._queue else None
                if item is not None:
                    self._write(item)
                    with self._condition:
                        self._queued -= item.size
                        self._condition.notify_all()
                now = time.monotonic()
                if self._uncommitted and (
                    self._uncommitted > COMMIT_BYTES or now - self._committed_at >= COMMIT_S
                ):
                    self._commit()
            if self._closing is not None:
                self._transaction()
                self._put_meta("end", codec.dumps(self._closing))
                self._commit()
        except BaseException as error:  # raised by `put` and `close`, whatever it is
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            with self._condition:
                self._problem = error
                self._queue.clear()
                self._condition.notify_all()
        finally:
            self._connection.close()

    def _wait(self) -> bool:
        """Wait for something to write or the time to commit; False when all is written after `close`."""
        with self._condition:
            if not self._queue and self._closing is None:
                rest = None if not self._uncommitted else COMMIT_S - (time.monotonic() - self._committed_at)
                if rest is None or rest > 0:
                    self._condition.wait(rest)
            return bool(self._queue) or self._closing is None

    def _transaction(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
            self._committed_at = time.monotonic()

    def _write(self, item: Item) -> None:
        self._transaction()
        for page in item.pages:
            self._block.append(page)
            if len(self._block) == format.BLOCK_PAGES:
                self._write_block()
        for generation in item.generations:
            data = self._compressor.compress(format.pack_generation(generation))
            self._connection.execute("INSERT INTO generation (data) VALUES (?)", (data,))
            self._uncommitted += len(data)
        if item.step is None:
            return
        self._write_events(item)
        number, kind, time_ns, late_ns, cause, generations, events, error = item.step
        detail = None if item.detail is None else self._compact(codec.dumps(item.detail))
        self._connection.execute(
            "INSERT INTO step VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, kind, time_ns, late_ns, cause, detail, generations, events, error),
        )
        self._uncommitted += 100

    def _write_events(self, item: Item) -> None:
        texts = [codec.dumps(codec.encode_event(event)) for event in item.events]
        if texts and self._small is None:
            self._begin_dictionary(texts)
        for text in texts:
            data = self._compact(text)
            row = (item.step[0] if item.step else 0, data)
            self._connection.execute("INSERT INTO event (step, data) VALUES (?, ?)", row)
            self._uncommitted += len(data)

    def _begin_dictionary(self, texts: list[bytes]) -> None:
        """Make the dictionary of the first events: later ones repeat their keys and paths."""
        sample = b"".join(texts)[-_DICTIONARY:]
        self._put_meta("dictionary", sample)
        shared = zstandard.ZstdCompressionDict(sample, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        shared.precompute_compress(level=3)
        self._small = zstandard.ZstdCompressor(level=3, dict_data=shared, write_checksum=True)

    def _compact(self, value: bytes) -> bytes:
        return (self._small or self._compressor).compress(value)

    def _write_block(self) -> None:
        if not self._block:
            return
        deltas = [
            one.content if one.before is None else format.difference(one.content, one.before)
            for one in self._block
        ]
        data = self._compressor.compress(format.pack_block([one.base for one in self._block], deltas))
        self._connection.execute("INSERT INTO block VALUES (?, ?)", (self._block[0].id, data))
        self._uncommitted += len(data)
        self._block.clear()

    def _commit(self) -> None:
        self._write_block()
        self._connection.execute("COMMIT")
        self._uncommitted, self._committed_at = 0, time.monotonic()
        self.commits += 1


def _create(path: Path, force: bool) -> sqlite3.Connection:
    """A new, empty database; replaces an existing file only with ``force``, and only a regular one."""
    if force:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise TargetError(f"{path} is no ordinary file, so it is not replaced; name another one")
            path.unlink()
            recover.journal_of(path).unlink(missing_ok=True)
    try:
        if recover.journal_of(path).exists():
            raise TargetError(
                f"{recover.journal_of(path)} is left of another recording; remove it, or name another file"
            )
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        raise TargetError(f"{path} exists already; name another file, or replace it with --force") from None
    except PermissionError:
        raise NotPermitted(f"{path} may not be created; name a file in a directory of yours") from None
    except OSError as error:
        raise TargetError(f"{path} cannot be created ({error.strerror}); name another file") from error
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=30,
    )
    # FULL: commits survive a power cut. No spill: the file changes only during commits.
    for pragma in ("journal_mode = DELETE", "synchronous = FULL", "cache_spill = OFF", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    return connection
