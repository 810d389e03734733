"""``-r jsonlines``: one JSON object per row, written and flushed at once.

Volatility's own JSON renderers print at the end, which does not come for a live guest.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from volatility3.cli import text_renderer

from live.core.text import encodable
from live.volatility.output import cells


class JsonLinesStream(text_renderer.CLIRenderer):  # type: ignore[misc]
    """A renderer of one JSON object per row: ``TreeDepth``, then the columns; absent values are null.

    The output is ASCII with JSON escapes, so it cannot control a terminal.  Bytes that are not UTF-8 appear
    as ``\\xNN``.
    """

    name = "jsonlines"
    structured_output = True

    def get_render_options(self) -> list[Any]:
        """None."""
        return []

    def render(self, grid: Any) -> None:
        """Write every row as it is generated."""
        hidden = self.ignored_columns(grid)
        shown = [(index, column) for index, column in enumerate(grid.columns) if column not in hidden]
        out = sys.stdout
        try:
            for depth, values in cells.rows(grid):
                line = {"TreeDepth": depth}
                line.update((column.name, _value(column, values[index])) for index, column in shown)
                if self.filter and self.filter.filter(
                    [cells.text(column, values[index]) for index, column in shown]
                ):
                    continue
                out.write(json.dumps(line) + "\n")
                out.flush()
        except BrokenPipeError:
            cells.close_quietly()


def _value(column: Any, value: Any) -> Any:
    if cells.absent(value):
        return None
    known = text_renderer.JsonRenderer._type_renderers
    result = known.get(column.type, known["default"])(value)
    return encodable(result) if isinstance(result, str) else result
