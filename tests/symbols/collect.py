"""Makes symbols/pruned_types.txt and pruned_symbols.txt: what Volatility's Linux plugins and this project
touch.

Method.  A plugin reaches a type by its name in a string (``get_type("sock")``), or by an attribute of an
object that it has (``task.mm``).  So: take every identifier in a string of Volatility's Linux code and of
ours that is the tag of a struct, union or enum, and every typed global; then follow each member, through
pointers and arrays, whose name occurs anywhere in that code as an attribute or string - to a fixed point.
It is more than is used, never less, as long as the code does not compute names.  Symbols: every identifier
in a string that kallsyms knows.  The union over several kernels is kept.

    python3 -m tests.symbols.collect KERNEL_OR_IMAGE...
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import volatility3

from symbols import btf as kinds
from symbols.btf import Btf
from symbols.globals import DECLARATIONS
from symbols.sources import kernel_tables

VOLATILITY = Path(volatility3.__file__).parent / "framework"
SOURCES = (
    *(VOLATILITY / "plugins" / "linux").rglob("*.py"),
    *(VOLATILITY / "symbols" / "linux").rglob("*.py"),
    VOLATILITY / "automagic" / "linux.py",
    *(Path(__file__).parents[2] / "live").rglob("*.py"),
    *(Path(__file__).parents[2] / "volplugins").rglob("*.py"),
)
SYMBOLS = Path(__file__).parents[2] / "symbols"
HEAD = "# Made by tests/symbols/collect.py from Volatility's and our own code; do not edit.\n"


def words() -> tuple[set[str], set[str]]:
    """(identifiers in strings, attribute names) of all sources."""
    strings: set[str] = set()
    attributes: set[str] = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
                strings.update(re.findall(r"[A-Za-z_]\w*", node.value))
            elif isinstance(node, ast.Attribute):
                attributes.add(node.attr)
    return strings, attributes


def reached(btf: Btf, number: int) -> int | None:
    """The struct or union at the end of pointers and arrays."""
    for _ in range(16):
        number = btf.resolve(number)
        kind = btf.kind(number)
        if kind == kinds.PTR:
            number = btf.target(number)
        elif kind == kinds.ARRAY:
            number = btf.array(number)[0]
        else:
            return number if kind in (kinds.STRUCT, kinds.UNION) else None
    return None


def collect(btf: Btf) -> Iterator[str]:
    strings, attributes = words()
    names = strings | attributes
    declared = {word for text in DECLARATIONS.values() for word in re.findall(r"struct (\w+)", text)}
    todo = [n for name in strings | declared for n in btf.aggregates(name)]
    done: set[int] = set()
    while todo:
        number = todo.pop()
        if number in done:
            continue
        done.add(number)
        if btf.kind(number) not in (kinds.STRUCT, kinds.UNION):
            continue
        for member in btf.members(number):
            held = reached(btf, member.type)
            if held is None or held in done:
                continue
            pointer = btf.kind(btf.resolve(member.type)) == kinds.PTR
            if not pointer or member.name in names:
                todo.append(held)
    return (btf.name(n) for n in done if btf.name(n))


def main(sources: list[str]) -> None:
    types: set[str] = set()
    symbols: set[str] = set()
    strings, _ = words()
    for source in sources:
        table = kernel_tables(source)
        types.update(collect(table.btf))
        symbols.update(strings.intersection(table.addresses))
    (SYMBOLS / "pruned_types.txt").write_text(HEAD + "".join(f"{name}\n" for name in sorted(types)))
    (SYMBOLS / "pruned_symbols.txt").write_text(HEAD + "".join(f"{name}\n" for name in sorted(symbols)))
    print(len(types), "types,", len(symbols), "symbols")


if __name__ == "__main__":
    main(sys.argv[1:])
