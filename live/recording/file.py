"""An open recording: reads rows in order and pages by id, and checks everything that it reads.

Rules
-----
* Every statement is run to its end at once, so that a recorder still writing to the file never waits.
* Ids count from 1 without a gap.  Whatever violates that, or a bound of `live.recording.format`, is
  reported as damage at the row where it is found.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from live.core.errors import TargetError
from live.core.events import Event
from live.core.memory import PAGE_SIZE
from live.core.traps import Trap
from live.recording import codec, format, header

KINDS = ("setup", "look", "trap", "frame")
_BATCH = 64
_MAX_ROWS = 1 << 40
_CACHED_PAGES = 8192
_CACHED_BLOCKS = 32
_ZERO_PAGE = bytes(PAGE_SIZE)


class Step(NamedTuple):
    """One recorded step.

    ``kind``: one of `KINDS`; ``look`` is a snapshot.  ``time_ns``: UTC ns since the epoch.  ``late_ns``: as
    in `Occasion`; of a frame, how long it took.  ``cause``: trigger of a snapshot, reason for a frame.
    ``generations``, ``events``: first and last id of the step's rows (first > last: none).  ``error``: the
    error that ended the step, or None.
    """

    id: int
    kind: str
    time_ns: int
    late_ns: int
    cause: str
    trap: Trap | None
    after: int
    """Of a frame: the step at which it was taken, 0 for none."""
    still: bool
    """Of a frame: whether the guest stood still while it was taken."""
    generations: tuple[int, int]
    events: tuple[int, int]
    error: str | None


class Recorded(NamedTuple):
    """A recorded event, its number (from 1) and the number of its step."""

    number: int
    step: int
    event: Event


class Recording:
    """An open recording; a context manager.  Use `live.recording.opening.open_recording`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Check the schema and read the header.  Raises `TargetError`."""
        self.path = path
        self._connection = connection
        self._expander = format.Expander()
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._blocks: OrderedDict[int, tuple[Sequence[int], Sequence[bytes]]] = OrderedDict()
        self._check_schema()
        self._has_dictionary = False
        raw = self.meta("recording", format.MAX_SMALL)
        if raw is None:
            raise self.damaged("it does not say what it is a recording of")
        try:
            self.header = header.decode(codec.loads(raw))
        except ValueError as error:
            raise self.damaged(str(error)) from error

    def damaged(self, what: str) -> TargetError:
        """The error for impossible content of this file; ``what`` names it."""
        return format.damaged(self.path, what)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Recording:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    # -- rows ----------------------------------------------------------------------------------------

    def _rows(self, statement: str, *arguments: int | str) -> list[Any]:
        try:
            return self._connection.execute(statement, arguments).fetchall()
        except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
            raise self.damaged(str(error)) from error

    def _check_schema(self) -> None:
        found = self._rows("SELECT type, name, sql FROM sqlite_master ORDER BY rowid LIMIT 64")
        if found != [("table", name, statement) for name, statement in format.SCHEMA]:
            raise TargetError(f"{self.path} is no recording that this version made: its tables are others")

    def meta(self, name: str, limit: int) -> bytes | None:
        """The named value of the ``meta`` table, decompressed; None if there is none.

        ``limit``: bytes, compressed and decompressed.  Raises `TargetError` if it is larger or damaged.
        """
        rows = self._rows(
            "SELECT CASE WHEN length(data) <= ? THEN data END FROM meta WHERE name = ? ORDER BY id LIMIT 1",
            limit,
            name,
        )
        if not rows:
            return None
        return self._expand(rows[0][0], limit, f"its {name}")

    def symbols(self) -> bytes:
        """The symbol table, as the text of an ISF file.  Raises `TargetError`."""
        found = self.meta("symbols", format.MAX_META)
        if found is None:
            raise self.damaged("it has no symbol table")
        return found

    def end(self) -> dict[str, Any] | None:
        """Reason and time of the end; None if the writer was killed or is still writing."""
        raw = self.meta("end", format.MAX_SMALL)
        try:
            value = None if raw is None else codec.loads(raw)
        except ValueError as error:
            raise self.damaged(str(error)) from error
        return value if isinstance(value, dict) else None

    def _expand(self, data: Any, limit: int, what: str, *, small: bool = False) -> bytes:
        if not isinstance(data, bytes):
            raise self.damaged(f"{what} is missing or too large")
        if small and not self._has_dictionary:
            # Read late: the writer stores it with the first events, maybe after the file was opened.
            dictionary = self.meta("dictionary", format.MAX_SMALL)
            self._expander, self._has_dictionary = format.Expander(dictionary or b""), dictionary is not None
        try:
            return self._expander.expand(data, limit, small=small)
        except ValueError as error:
            raise self.damaged(f"{what}: {error}") from error

    def _counted(self, table: str, columns: str, after: int, last: int) -> Iterator[Any]:
        """The rows with ``after`` < id <= ``last`` that exist, in order; the file may be growing."""
        while after < last:
            rows = self._rows(
                f"SELECT id, {columns} FROM {table} WHERE id > ? AND id <= ? ORDER BY id LIMIT {_BATCH}",
                after,
                last,
            )
            for row in rows:
                after += 1
                if row[0] != after:
                    raise self.damaged(f"{table} {after} is missing")
                yield row
            if len(rows) < _BATCH:
                return

    def steps(self, first: int = 1, last: int = _MAX_ROWS) -> Iterator[Step]:
        """The steps from ``first`` to ``last``, inclusive, that exist.  Raises `TargetError` for damage."""
        if first < 1:
            raise self.damaged(f"there is no step {first}")
        generations = events = 0
        if first > 1:
            before = self._rows("SELECT generations, events FROM step WHERE id = ?", first - 1)
            if not before:
                return
            generations, events = (_count(number, 0) for number in before[0])
            if min(generations, events) < 0:
                raise self.damaged(f"step {first - 1} has impossible values")
        columns = (
            "kind, time_ns, late_ns, cause, detail IS NULL, CASE WHEN length(detail) <= "
            f"{format.MAX_SMALL} THEN detail END, generations, events, error"
        )
        for row in self._counted("step", columns, first - 1, last):
            step = self._step(row, generations, events)
            generations, events = step.generations[1], step.events[1]
            yield step

    def _step(self, row: Any, generations: int, events: int) -> Step:
        number, kind, time_ns, late_ns, cause, plain, detail, last_generation, last_event, error = row
        if (
            kind not in KINDS
            or not 0 <= _count(time_ns, -1) < codec.MAX_TIME
            or type(late_ns) is not int
            or not isinstance(cause, str)
            or _count(last_generation, -1) < generations
            or _count(last_event, -1) < events
            or (error is not None and not isinstance(error, str))
        ):
            raise self.damaged(f"step {number} has impossible values")
        trap, after, still = None, 0, False
        if not plain:
            try:
                value = codec.loads(self._expand(detail, format.MAX_SMALL, f"step {number}", small=True))
                if kind == "trap":
                    trap = codec.decode_trap(value)
                elif kind == "frame" and isinstance(value, dict):
                    after, still = _count(value.get("after"), 0), value.get("still") is True
            except ValueError as problem:
                raise self.damaged(f"step {number}: {problem}") from problem
        if kind == "trap" and trap is None:
            raise self.damaged(f"step {number} is a trap without one")
        return Step(
            number,
            kind,
            time_ns,
            late_ns,
            cause,
            trap,
            after,
            still,
            (generations + 1, last_generation),
            (events + 1, last_event),
            error,
        )

    def step(self, number: int) -> Step:
        """One step.  Raises `TargetError` if there is no such step."""
        for step in self.steps(number, number):
            return step
        raise self.damaged(f"step {number} is missing")

    def generations(self, first: int, last: int) -> Iterator[format.Generation]:
        """The generations ``first`` to ``last``, inclusive.  Raises `TargetError` if one is missing."""
        number = first - 1
        columns = f"CASE WHEN length(data) <= {format.MAX_GENERATION} THEN data END"
        for number, data in self._counted("generation", columns, first - 1, last):
            raw = self._expand(data, format.MAX_GENERATION, f"generation {number}")
            try:
                yield format.unpack_generation(raw)
            except ValueError as error:
                raise self.damaged(f"generation {number}: {error}") from error
        if number < last:
            raise self.damaged(f"generation {number + 1} is missing")

    def events(self, first: int = 1, last: int = _MAX_ROWS) -> Iterator[Recorded]:
        """The recorded events from ``first`` to ``last``, inclusive, that exist.  Raises `TargetError`."""
        columns = f"step, CASE WHEN length(data) <= {format.MAX_SMALL} THEN data END"
        for number, step, data in self._counted("event", columns, first - 1, last):
            raw = self._expand(data, format.MAX_SMALL, f"event {number}", small=True)
            try:
                yield Recorded(number, _count(step, 0), codec.decode_event(codec.loads(raw)))
            except ValueError as error:
                raise self.damaged(f"event {number}: {error}") from error

    def event(self, number: int) -> Recorded:
        """One event.  Raises `TargetError` if there is no such event."""
        for one in self.events(number, number) if number > 0 else ():
            return one
        raise TargetError(f"{self.path} has no event {number}; it has {self.count('event')}")

    def count(self, table: str) -> int:
        """Number of rows of ``table``: ``step``, ``event`` or ``generation``."""
        if table not in ("step", "event", "generation"):
            raise ValueError(table)
        return _count(self._rows(f"SELECT max(id) FROM {table}")[0][0], 0)

    # -- pages -----------------------------------------------------------------------------------------

    def page(self, number: int) -> bytes | None:
        """The 4096 bytes of a page version; None if it could not be read live.  Raises `TargetError`."""
        if number == format.ZERO:
            return _ZERO_PAGE
        if number == format.FAULT:
            return None
        page = self._pages.get(number)
        if page is not None:
            self._pages.move_to_end(number)
            return page
        chain: list[bytes] = []
        wanted, content = number, None
        while content is None:
            if len(chain) > format.MAX_DEPTH:
                raise self.damaged(f"page {number} leads through too many versions")
            base, delta = self._stored(wanted)
            if not base:
                content = delta
                break
            if not format.FIRST_PAGE <= base < wanted:
                raise self.damaged(f"page {wanted} is based on a later one")
            chain.append(delta)
            content = self._pages.get(base)
            wanted = base
        for delta in reversed(chain):
            content = format.difference(content, delta)
        self._pages[number] = content
        if len(self._pages) > _CACHED_PAGES:
            self._pages.popitem(last=False)
        return content

    def _stored(self, number: int) -> tuple[int, bytes]:
        first = self._block_of(number)
        bases, pages = self._blocks[first]
        if number - first >= len(pages):
            raise self.damaged(f"page {number} is missing")
        return bases[number - first], pages[number - first]

    def _block_of(self, number: int) -> int:
        for first in range(number, number - format.BLOCK_PAGES, -1):
            block = self._blocks.get(first)
            if block is not None and number - first < len(block[1]):
                self._blocks.move_to_end(first)
                return first
        rows = self._rows(
            f"SELECT id, CASE WHEN length(data) <= {2 * format.MAX_BLOCK} THEN data END FROM block "
            "WHERE id <= ? ORDER BY id DESC LIMIT 1",
            number,
        )
        if not rows:
            raise self.damaged(f"page {number} is missing")
        first = int(rows[0][0])
        try:
            block = format.unpack_block(self._expand(rows[0][1], format.MAX_BLOCK, f"block {first}"))
        except ValueError as error:
            raise self.damaged(f"block {first}: {error}") from error
        self._blocks[first] = block
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return first


def _count(value: Any, otherwise: int) -> int:
    return int(value) if type(value) is int else otherwise
