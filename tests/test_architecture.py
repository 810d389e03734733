"""Imports point one way: core <- arch <- linux <- watch <- recording, output <- volatility, cli."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOTS = [Path(importlib.util.find_spec(name).origin).parent for name in ("live", "symbols")]
MODULES = sorted(path for root in ROOTS for path in root.rglob("*.py"))

# Which of our own packages a layer may import; the first matching prefix counts.
ALLOWED = {
    "live.core": ("live.core",),
    "live.arch": ("live.core", "live.arch"),
    "live.linux": ("live.core", "live.arch", "live.linux", "symbols"),
    "live.hypervisors": ("live.core", "live.arch", "live.hypervisors"),
    "symbols": ("live.core", "live.arch", "symbols"),
    "live": ("live", "symbols"),
}
# What only the edge may touch.
EDGE = {
    "rich": ("live.cli", "live.output.render", "live.volatility.output.rich_text"),
    "socket": ("live.hypervisors",),
    "mmap": ("live.hypervisors", "live.volatility.input.memory", "symbols"),
    "volatility3": ("live.linux.layout", "live.volatility"),
}


def name_of(path):
    root = next(root for root in ROOTS if path.is_relative_to(root))
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def within(name, prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    module = name_of(path)
    allowed = next(targets for prefix, targets in ALLOWED.items() if within(module, [prefix]))
    for imported in imports_of(path):
        if within(imported, ["live", "symbols", "volplugins", "tests"]):
            assert within(imported, allowed), f"{module} imports {imported}"
        for package, users in EDGE.items():
            if within(imported, [package]):
                assert within(module, users), f"{module} imports {imported}"


def test_the_core_needs_the_standard_library_only():
    for path in MODULES:
        if within(name_of(path), ["live.core"]):
            foreign = {
                name.partition(".")[0]
                for name in imports_of(path)
                if name.partition(".")[0] not in sys.stdlib_module_names | {"live"}
            }
            assert foreign == set(), path


def test_there_is_something_to_check():
    assert {"live.core.tracker", "live.linux.kernel", "symbols.guest"} <= set(map(name_of, MODULES))


def test_files_hold_one_idea():
    long = {name_of(path): n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}
