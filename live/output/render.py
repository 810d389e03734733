"""Events on a terminal, as plain lines, or as JSON lines.  Guest text is escaped here, always."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from live.core.events import EndReason, Event, Process, ProcessEnd, ProcessExec
from live.core.text import printable
from live.linux.boot import System
from live.output import ecs
from live.output.columns import COLUMNS, action

_STYLES = {"start": "green", "exec": "cyan", "end": "red"}
_GAP = "  "
_MAX_CELL = 2000
_PATIENCE_S = 0.2
_REFRESH_S = 0.25


class Renderer(Protocol):
    """Where events go."""

    def show(self, event: Event) -> None:
        """One event, at once."""

    def pause(self, summary: Callable[[], str]) -> None:
        """Nothing happens just now: time for what can wait.  ``summary`` says how it stands."""

    def close(self) -> None:
        """Nothing follows."""


def cells(event: Event) -> list[str]:
    """The text of every column, escaped; "-" for what is not known."""
    return [_cell(column.value(event)) for column in COLUMNS]


def row(event: Event) -> str:
    """The cells of an event as one aligned line."""
    return _join(cells(event))


def header() -> str:
    """The line above plain lines."""
    return _join([column.title for column in COLUMNS])


def _cell(value: int | str | datetime.datetime | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime.datetime):
        return value.strftime("%H:%M:%S.%f")[:-3]
    return printable(value)[:_MAX_CELL] if isinstance(value, str) else str(value)


def _join(texts: list[str]) -> str:
    parts = [
        (text.rjust(column.width) if column.right else text.ljust(column.width))
        for column, text in zip(COLUMNS, texts, strict=True)
    ]
    return _GAP.join(parts).rstrip()


class Folder:
    """Makes one row of the three events of an exec, for people; JSON and the API have all three."""

    def __init__(self) -> None:
        """No exec has been shown yet."""
        self._new: Process | None = None

    def shown(self, event: Event) -> bool:
        """Whether the event gets a row of its own."""
        if isinstance(event, ProcessExec):
            self._new = event.new
            return True
        if isinstance(event, ProcessEnd):
            return event.reason is not EndReason.EXEC
        return event.process is not self._new


class PlainRenderer:
    """Aligned columns, one line an event (one in all for an exec), flushed; for pipes and logs."""

    def __init__(self, out: TextIO) -> None:
        """Print the header."""
        self._out = out
        self._folder = Folder()
        self._line(header())

    def show(self, event: Event) -> None:
        """One line."""
        if self._folder.shown(event):
            self._line(row(event))

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def pause(self, summary: Callable[[], str]) -> None:
        """There is nothing that waits."""

    def close(self) -> None:
        """Everything is flushed."""


class JsonRenderer:
    """One Elastic Common Schema document a line, flushed, and nothing else."""

    def __init__(self, out: TextIO, system: System, *, host: str, mode: str) -> None:
        """Nothing is printed yet."""
        self._out, self._system, self._host, self._mode = out, system, host, mode

    def show(self, event: Event) -> None:
        """One line."""
        self._out.write(ecs.line(event, self._system, host=self._host, mode=self._mode) + "\n")
        self._out.flush()

    def pause(self, summary: Callable[[], str]) -> None:
        """There is nothing that waits, and nothing but events goes to standard output."""

    def close(self) -> None:
        """Everything is flushed."""


class RichRenderer:
    """Rows in colour that scroll, above one status line that stays.

    A row takes rich a millisecond, in which the next trap would wait; so rows are kept and printed
    together: at a pause, or when the oldest is `_PATIENCE_S` old.
    """

    def __init__(self, console: Console) -> None:
        """Print the header."""
        self._console = console
        self._folder = Folder()
        self._rows: list[Text] = []
        self._oldest = self._refreshed = 0.0
        self._live = Live("", console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._print([Text(header(), style="bold")])

    def show(self, event: Event) -> None:
        """One row; Text, not markup, so that guest text cannot style itself."""
        if not self._folder.shown(event):
            return
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(Text(row(event), style=_STYLES[action(event)]))
        if time.monotonic() - self._oldest > _PATIENCE_S:
            self._flush()

    def pause(self, summary: Callable[[], str]) -> None:
        """Print the rows that wait; renew the status line four times a second."""
        self._flush()
        now = time.monotonic()
        if now - self._refreshed > _REFRESH_S:
            self._refreshed = now
            self._live.update(
                Text(summary(), style="reverse", no_wrap=True, overflow="ellipsis"), refresh=True
            )

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._print(rows)

    def _print(self, rows: list[Text]) -> None:
        self._console.print(Text("\n").join(rows), no_wrap=True, overflow="ellipsis", crop=True)

    def close(self) -> None:
        """Print what waits, take the status line away."""
        self._flush()
        self._live.stop()


def choose(system: System, *, json: bool, host: str, mode: str) -> Renderer:
    """JSON if asked for, else a rich table on a terminal, else plain lines."""
    if json:
        return JsonRenderer(sys.stdout, system, host=host, mode=mode)
    if sys.stdout.isatty():
        return RichRenderer(Console())
    return PlainRenderer(sys.stdout)
