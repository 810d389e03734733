"""Common parts of the streaming renderers: rows of a TreeGrid as they are generated, values as safe text.

A TreeGrid keeps every node that it passes to a renderer.  A printed row is not needed again, so rows are
taken from the grid's generator one by one and dropped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from volatility3.cli import text_renderer
from volatility3.framework import interfaces, renderers
from volatility3.framework.renderers import format_hints

from live.core.text import printable

_BLOCKS = (
    format_hints.HexBytes,
    format_hints.MultiTypeData,
    renderers.Disassembly,
    renderers.LayerData,
    bytes,
)
"""Column types whose text may have several lines."""


def rows(grid: Any) -> Iterator[tuple[int, Sequence[Any]]]:
    """(depth, values) of each row as it is generated; depth 0 is the top."""
    generator = getattr(grid, "_generator", None)
    if grid.populated or generator is None:
        found: list[tuple[int, Sequence[Any]]] = []

        def visitor(node: Any, _: None) -> None:
            found.append((max(0, node.path_depth - 1), list(node.values)))

        if grid.populated:
            grid.visit(node=None, function=visitor, initial_accumulator=None)
        else:
            grid.populate(visitor, None)
        yield from found
        return
    depth = -1
    for level, values in generator:
        # Like TreeGrid: at most one level below the previous row.
        depth = min(level, depth + 1)
        yield depth, values


def text(column: Any, value: Any) -> str:
    """A value as Volatility's text renderers show it, with non-printable characters escaped."""
    known = text_renderer.CLIRenderer._type_renderers
    shown = str(known.get(column.type, known["default"])(value))
    if column.type in _BLOCKS:
        return "\n".join(map(printable, shown.split("\n")))
    return printable(shown)


def absent(value: Any) -> bool:
    """Whether a value is absent, for any reason."""
    return isinstance(value, interfaces.renderers.BaseAbsentValue)


def close_quietly() -> None:
    """After a BrokenPipeError: redirect stdout, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
