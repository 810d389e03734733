"""Events as a table: in colour on a terminal, else as plain lines.  All guest text is escaped here."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from live.core.events import EndReason, Event, Process, ProcessEnd, ProcessExec
from live.core.text import printable
from live.output.columns import COLUMNS, action
from live.output.contract import Context, Sink

_STYLES = {"start": "green", "exec": "cyan", "end": "red"}
_GAP = "  "
_MAX_CELL = 2000
_PATIENCE_S = 0.2
_REFRESH_S = 0.25


def cells(event: Event) -> list[str]:
    """The text of every column, escaped; "-" for None."""
    return [_cell(column.value(event)) for column in COLUMNS]


def row(event: Event) -> str:
    """An event as one aligned line."""
    return _join(cells(event))


def header() -> str:
    """The column titles, aligned like `row`."""
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
    """Reduces the three events of an exec to one row.  (JSON and the API have all three.)"""

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
    """A `Sink` of aligned plain lines, one per row, each flushed; for pipes and logs."""

    def __init__(self, out: TextIO) -> None:
        """Print the header."""
        self._out = out
        self._folder = Folder()
        self._line(header())

    def show(self, event: Event) -> None:
        """Write one line, or none (see `Folder`)."""
        if self._folder.shown(event):
            self._line(row(event))

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def pause(self, summary: Callable[[], str]) -> None:
        """Nothing is deferred."""

    def close(self) -> None:
        """Nothing to do: every line is flushed."""


class RichRenderer:
    """A `Sink` of coloured rows that scroll above a status line.

    rich takes a millisecond per row, which would delay the next trap.  So rows are collected and
    printed together: at a pause, or when the oldest is `_PATIENCE_S` old.
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
        """Add one row, as `Text` and not markup, so that guest text cannot style itself."""
        if not self._folder.shown(event):
            return
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(Text(row(event), style=_STYLES[action(event)]))
        if time.monotonic() - self._oldest > _PATIENCE_S:
            self._flush()

    def pause(self, summary: Callable[[], str]) -> None:
        """Print the collected rows; update the status line, every `_REFRESH_S` at most."""
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
        """Print the collected rows and remove the status line."""
        self._flush()
        self._live.stop()


def table(context: Context) -> Sink:
    """A coloured table above a status line if the output is a terminal, else plain lines."""
    return RichRenderer(Console(file=context.out)) if context.out.isatty() else PlainRenderer(context.out)


def plain(context: Context) -> Sink:
    """Plain aligned lines, also on a terminal."""
    return PlainRenderer(context.out)
