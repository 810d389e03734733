"""The walls: imports point one way and in no circle, and each thing is named on its own side only."""

import ast
import importlib.util
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOTS = [Path(importlib.util.find_spec(name).origin).parent for name in ("live", "symbols")]
MODULES = sorted(path for root in ROOTS for path in root.rglob("*.py"))
PLUGIN = ROOTS[0] / "hypervisors" / "qemu" / "plugin"

# Which of our own packages a layer may import; the first matching prefix counts.
ALLOWED = {
    "live.core": ("live.core",),
    "live.arch": ("live.core", "live.arch"),
    "symbols": ("live.core", "live.arch", "symbols"),
    "live.linux": ("live.core", "live.arch", "live.linux", "symbols"),
    "live.hypervisors": ("live.core", "live.hypervisors"),
    "live.watch": ("live.core", "live.arch", "live.hypervisors.registry", "live.watch"),
    "live.output": ("live.core", "live.output"),
    "live.testing": ("live.core", "live.arch", "live.watch", "live.output", "live.testing"),
    "live.recording": ("live.core", "live.arch", "live.watch", "live.output", "live.recording"),
    "live.volatility": ("live", "symbols"),
    "live.cli": ("live", "symbols"),
    "live": (),
}
# Of a hypervisor's folder: which of its parts know which.
QEMU = {
    "live.hypervisors.qemu.monitor": ("live.hypervisors.qemu.monitor",),
    "live.hypervisors.qemu.gdbstub": ("live.hypervisors.qemu.gdbstub", "live.hypervisors.qemu.monitor"),
    "live.hypervisors.qemu.plugin": ("live.hypervisors.qemu.plugin",),
    "live.hypervisors.host": ("live.hypervisors.host",),
    "live.hypervisors.process": ("live.hypervisors.process", "live.hypervisors.host"),
    "live.hypervisors.panda": ("live.hypervisors.panda", "live.hypervisors.host"),
}
# What only the edge may touch.
EDGE = {
    "rich": ("live.cli", "live.output.table", "live.volatility.output.rich_text"),
    "socket": ("live.hypervisors",),
    "mmap": ("live.hypervisors", "live.volatility.input.memory", "symbols"),
    "volatility3": ("live.linux.layout", "live.volatility"),
    "pandare": (),
}
REGISTERS = re.compile(
    r"\b([re]?[abcd]x|[re]?[sd]i|[re][sbi]p|r(8|9|1[0-5])|cr[0-8]|efer|(k_)?[fg]s_base|ttbr[01]_el1|tpidr_el1)\b",
    re.IGNORECASE,
)
HYPERVISORS = re.compile(r"\b(qemu|kvm|tcg|libvirt|xen|panda|firecracker|virtualbox)\b", re.IGNORECASE)
STRUCTURES = re.compile(
    r"\b(\w+_struct|init_\w*task|init_pid_ns|init_uts_ns|tk_core|timekeeper\w*|nsproxy|css_set|kernfs_node"
    r"|total_forks|nr_threads|swapper|PF_[A-Z]+)\b"
)


def name_of(path):
    root = next(root for root in ROOTS if path.is_relative_to(root))
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path, *, at_run_time=False):
    """Names of what is imported; ``at_run_time``: not for type checking, nor within functions."""
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif at_run_time and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            continue
        else:
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.AST)]


def within(name, prefixes):
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def code_of(path):
    """(line, text) of identifiers and string literals, docstrings and comments left out."""
    source = path.read_text()
    tree = ast.parse(source)
    prose = {
        node.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    kinds = {tokenize.NAME, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds and token.start[0] not in prose:
            yield token.start[0], token.string


def outside(*folders):
    return [pytest.param(path, id=name_of(path)) for path in MODULES if not within(name_of(path), folders)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
    module = name_of(path)
    allowed = next(targets for prefix, targets in ALLOWED.items() if within(module, [prefix]))
    inner = next((targets for prefix, targets in QEMU.items() if within(module, [prefix])), None)
    for imported in imports_of(path):
        if within(imported, ["live", "symbols", "volplugins", "tests"]):
            assert within(imported, allowed), f"{module} imports {imported}"
        if inner and within(imported, ["live.hypervisors"]):
            assert within(imported, inner), f"{module} imports {imported}"
        for package, users in EDGE.items():
            if within(imported, [package]):
                assert within(module, users), f"{module} imports {imported}"


def cycle_in(edges):
    """A circle in a graph, as a list of its nodes; None if there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        path.append(node)
        for other in sorted(edges.get(node, ())):
            found = visit(other)
            if found:
                return found
        done.add(path.pop())
        return None

    return next(filter(None, map(visit, sorted(edges))), None)


def module_edges():
    names = set(map(name_of, MODULES))
    edges = {}
    for path in MODULES:
        found = set()
        for imported in imports_of(path, at_run_time=True):
            target = imported if imported in names else imported.rpartition(".")[0]
            if target in names and target != name_of(path):
                found.add(target)
        edges[name_of(path)] = found
    return edges


def test_no_module_imports_itself_in_a_circle():
    assert cycle_in(module_edges()) is None


def test_the_folders_of_a_hypervisor_form_no_circle():
    folders = {}
    for module, targets in module_edges().items():
        if within(module, ["live.hypervisors.qemu"]):
            own = module.split(".")[3] if module.count(".") > 3 else "qemu"
            for target in targets:
                if within(target, ["live.hypervisors.qemu"]):
                    other = target.split(".")[3] if target.count(".") > 3 else "qemu"
                    if other != own and target.count(".") > 2:
                        folders.setdefault(own, set()).add(other)
    # A single module of the folder itself (discover) may serve all; the rest of it is on top.
    assert folders["qemu"] >= {"monitor", "gdbstub", "plugin"}
    for below in ("monitor", "gdbstub", "plugin"):
        assert "qemu" not in folders.get(below, set()), below
    assert cycle_in({name: targets - {"qemu"} for name, targets in folders.items()}) is None


def test_no_header_of_the_plugin_includes_itself_in_a_circle():
    files = {path.name for path in PLUGIN.iterdir() if path.suffix in (".c", ".h")}
    edges = {
        name: files & set(re.findall(r'#include "([^"]+)"', (PLUGIN / name).read_text())) for name in files
    }
    assert sum(map(len, edges.values())) > 4
    assert cycle_in(edges) is None


def test_a_circle_would_be_found():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_the_core_needs_the_standard_library_only():
    for path in MODULES:
        if within(name_of(path), ["live.core"]):
            foreign = {
                name.partition(".")[0]
                for name in imports_of(path)
                if name.partition(".")[0] not in sys.stdlib_module_names | {"live"}
            }
            assert foreign == set(), path


@pytest.mark.parametrize("path", outside("live.arch", "live.hypervisors.panda.registers"))
def test_registers_are_named_by_the_architecture_only(path):
    """In prose, too.  Of the plugin it is the C that knows them (tests/hypervisors/test_wire.py); of PANDA a
    table of its names, for what reads them out of a C struct.
    """
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if REGISTERS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("path", outside("live.hypervisors"))
def test_hypervisors_are_named_by_themselves_only(path):
    """In code and in what users read; a docstring may cite a source."""
    assert [f"{line}: {text}" for line, text in code_of(path) if HYPERVISORS.search(text)] == []


@pytest.mark.parametrize("path", outside("live.linux", "symbols"))
def test_kernel_structures_are_named_by_linux_and_symbols_only(path):
    """In code and in what users read; a docstring may say what a value is in the kernel."""
    assert [f"{line}: {text}" for line, text in code_of(path) if STRUCTURES.search(text)] == []


def test_the_patterns_find_what_they_are_for():
    assert REGISTERS.search("the value of rdi")
    assert not REGISTERS.search("a rest, an index, a ring")
    assert HYPERVISORS.search("a QEMU guest")
    assert not HYPERVISORS.search("qemu_like")
    assert STRUCTURES.search('"task_struct"')
    assert not STRUCTURES.search("task_structure")


def test_there_is_something_to_check():
    assert {"live.core.tracker", "live.linux.kernel", "symbols.guest"} <= set(map(name_of, MODULES))


def test_files_hold_one_idea():
    long = {name_of(path): n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}
