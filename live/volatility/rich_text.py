"""``-r rich``: rows in colour, printed at once, aligned as well as a stream can be."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text
from volatility3.cli import text_renderer
from volatility3.framework.renderers import format_hints

from live.volatility import cells

_GAP = "  "
_MAX_WIDTH = 40
_EVENTS = {"start": "green", "exec": "cyan", "end": "red"}
_WIDTHS: dict[type, int] = {datetime.datetime: 30, format_hints.Hex: 18, int: 6, str: 8}
_TITLES = {"COMM": 15, "ARGS": 30, "EXE": 20}
_STYLES: dict[type, str] = {datetime.datetime: "dim", format_hints.Hex: "magenta", int: "bold"}


class RichText(text_renderer.CLIRenderer):  # type: ignore[misc]
    """A column is as wide as its widest cell so far; a tree is drawn in its first column.

    Cells are `rich.text.Text`, never markup, and escaped before: a process cannot name itself into another
    colour.
    """

    name = "rich"

    def get_render_options(self) -> list[Any]:
        """None."""
        return []

    def render(self, grid: Any) -> None:
        """Print every row as it comes."""
        hidden = self.ignored_columns(grid)
        shown = [(index, column) for index, column in enumerate(grid.columns) if column not in hidden]
        columns = [column for _, column in shown]
        widths = [
            max(len(column.name), _WIDTHS.get(column.type, 0), _TITLES.get(column.name, 0))
            for column in columns
        ]
        console = Console(highlight=False, markup=False, emoji=False)
        try:
            _print(
                console, [Text(column.name, style="bold underline") for column in columns], columns, widths
            )
            for depth, values in cells.rows(grid):
                texts = [cells.text(column, values[index]) for index, column in shown]
                if self.filter and self.filter.filter(texts):
                    continue
                row = [
                    _cell(column, values[index], text)
                    for (index, column), text in zip(shown, texts, strict=True)
                ]
                if depth:
                    row[0] = Text("  " * (depth - 1) + "└ ", style="dim") + row[0]
                _print(console, row, columns, widths)
        except BrokenPipeError:
            cells.close_quietly()


def _cell(column: Any, value: Any, text: str) -> Text:
    if cells.absent(value):
        return Text(text, style="dim")
    if column.name == "EVENT":
        return Text(text, style=_EVENTS.get(text, ""))
    return Text(text, style=_STYLES.get(column.type, ""))


def _print(console: Console, row: Sequence[Text], columns: Sequence[Any], widths: list[int]) -> None:
    line = Text()
    blocks: list[Text] = []
    for index, (cell, column) in enumerate(zip(row, columns, strict=True)):
        if "\n" in cell.plain:
            blocks.append(cell)
            cell = Text("(below)", style="dim")  # noqa: PLW2901 -- a dump does not fit into a line
        widths[index] = max(widths[index], min(cell.cell_len, _MAX_WIDTH))
        space = " " * max(0, widths[index] - cell.cell_len)
        right = issubclass(column.type, int) and not issubclass(column.type, format_hints.Hex)
        line += Text(space) + cell if right else cell + Text(space)
        line += Text(_GAP)
    line.rstrip()
    # soft_wrap: nothing is cut off; the terminal wraps what is too long for it.
    console.print(line, soft_wrap=True)
    for block in blocks:
        console.print(block, soft_wrap=True)
