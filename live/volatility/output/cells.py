"""Rows of a TreeGrid as they come, and their values as safe text: what the streaming renderers share.

The host's TreeGrid keeps every node that it hands to a renderer.  A row that was printed is of no use any
more, so the rows are taken from the grid's generator, one by one, and forgotten.
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
"""Column types whose text has several lines by design."""


def rows(grid: Any) -> Iterator[tuple[int, Sequence[Any]]]:
    """(depth, values) of each row, as soon as there is one; depth 0 is the top."""
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
        # As the grid itself has it: no deeper than one below the row before.
        depth = min(level, depth + 1)
        yield depth, values


def text(column: Any, value: Any) -> str:
    """A value as the host's text renderers show it, with everything escaped that would not simply print."""
    known = text_renderer.CLIRenderer._type_renderers
    shown = str(known.get(column.type, known["default"])(value))
    if column.type in _BLOCKS:
        return "\n".join(map(printable, shown.split("\n")))
    return printable(shown)


def absent(value: Any) -> bool:
    """Whether there is no value, for whatever reason."""
    return isinstance(value, interfaces.renderers.BaseAbsentValue)


def close_quietly() -> None:
    """After a BrokenPipeError: the reader has enough, and Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
