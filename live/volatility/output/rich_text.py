"""``-r rich``: coloured rows, printed as they are generated."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Span, Text
from volatility3.cli import text_renderer
from volatility3.framework.renderers import format_hints

from live.volatility.output import cells

_GAP = "  "
_MAX_WIDTH = 40
_EVENTS = {"start": "green", "exec": "cyan", "end": "red"}
_WIDTHS: dict[type, int] = {datetime.datetime: 30, format_hints.Hex: 18, int: 6, str: 8}
_TITLES = {"COMM": 15, "ARGS": 30, "EXE": 20}
_STYLES: dict[type, str] = {datetime.datetime: "dim", format_hints.Hex: "magenta", int: "bold"}


class RichText(text_renderer.CLIRenderer):  # type: ignore[misc]
    """A renderer that prints each row at once, in colour.

    A column is as wide as its widest cell so far; a tree is drawn in the first column.  A row is a
    `rich.text.Text`, never markup, and its text is escaped, so a process's name cannot change colours.
    """

    name = "rich"

    def get_render_options(self) -> list[Any]:
        """None."""
        return []

    def render(self, grid: Any) -> None:
        """Print every row as it is generated."""
        hidden = self.ignored_columns(grid)
        shown = [(index, column) for index, column in enumerate(grid.columns) if column not in hidden]
        columns = [column for _, column in shown]
        widths = [
            max(len(column.name), _WIDTHS.get(column.type, 0), _TITLES.get(column.name, 0))
            for column in columns
        ]
        console = Console(highlight=False, markup=False, emoji=False)
        try:
            _print(console, [(column.name, "bold underline") for column in columns], columns, widths)
            for depth, values in cells.rows(grid):
                texts = [cells.text(column, values[index]) for index, column in shown]
                if self.filter and self.filter.filter(texts):
                    continue
                row = [
                    (text, _style(column, values[index], text))
                    for (index, column), text in zip(shown, texts, strict=True)
                ]
                if depth:
                    row[0] = ("  " * (depth - 1) + "└ " + row[0][0], row[0][1])
                _print(console, row, columns, widths)
        except BrokenPipeError:
            cells.close_quietly()


def _style(column: Any, value: Any, text: str) -> str:
    if cells.absent(value):
        return "dim"
    if column.name == "EVENT":
        return _EVENTS.get(text, "")
    return _STYLES.get(column.type, "")


def _print(
    console: Console, row: Sequence[tuple[str, str]], columns: Sequence[Any], widths: list[int]
) -> None:
    parts: list[str] = []
    spans: list[Span] = []
    at = 0
    blocks: list[Text] = []
    for index, ((text, style), column) in enumerate(zip(row, columns, strict=True)):
        if "\n" in text:
            blocks.append(Text(text, style))
            text, style = "(below)", "dim"  # noqa: PLW2901 -- a dump does not fit into a line
        width = cell_len(text)
        widths[index] = max(widths[index], min(width, _MAX_WIDTH))
        space = " " * max(0, widths[index] - width)
        right = issubclass(column.type, int) and not issubclass(column.type, format_hints.Hex)
        begin = at + len(space) if right else at
        if style:
            spans.append(Span(begin, begin + len(text), style))
        parts += (space, text, _GAP) if right else (text, space, _GAP)
        at += len(space) + len(text) + len(_GAP)
    # Joined here: appending piece by piece takes rich four times as long.
    whole = Text("".join(parts), spans=spans)
    whole.rstrip()
    # soft_wrap: rich cuts nothing; the terminal wraps long lines.
    for each in (whole, *blocks):
        console.print(each, soft_wrap=True)
