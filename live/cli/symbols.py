"""``pse symbols``: the symbol tables on this machine - list, build, show, prune the cache."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from live.core.errors import TargetError
from symbols.cache import Cache, Entry, write_atomically
from symbols.guest import release_of

if TYPE_CHECKING:
    from rich.table import Table

_SOURCES = (
    "a vmlinuz, unified kernel image or vmlinux, or a memory image of a guest (raw RAM file, ELF dump, LiME)"
)
_WHERE = "directory of the cache (default: $PSE_SYMBOLS, or symbols in your cache directory for pse)"
_DESCRIPTION = """\
Symbol tables are made from the kernel itself - its BTF types and its kallsyms - and kept, so there is usually
nothing to do: `pse watch` and Volatility with our plugins make what they need. These commands are
for looking at them, and for making one beforehand.
"""
_FUNCTION: dict[str, object] = {"kind": "function"}
_EXAMPLES = """\
examples:
  pse symbols list                                  what is kept
  pse symbols build /boot/vmlinuz-6.1.0-56-cloud-amd64
  pse symbols build memory.elf --full -o guest.json.xz
  pse symbols show 6.1.0-56                         one table, in short
  pse symbols prune-cache --days 30
  vol -s "$(pse symbols path)" -f memory.raw linux.pslist
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``symbols`` to the subcommands of ``pse``."""
    symbols = commands.add_parser(
        "symbols",
        help="list, build, show and prune symbol tables",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    symbols.set_defaults(run=run)
    actions = symbols.add_subparsers(dest="action", metavar="ACTION", required=True)

    one = actions.add_parser("list", help="list the tables that are kept", description="The tables kept.")
    one.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_cache(one)

    one = actions.add_parser(
        "build",
        help="make a table from a kernel or a memory image",
        description=f"Make a symbol table. SOURCE is {_SOURCES}. Prints the path of the table.",
    )
    one.add_argument("source", metavar="SOURCE", type=Path, help=_SOURCES)
    one.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="write it to FILE (.json or .json.xz) instead of the cache",
    )
    size = one.add_mutually_exclusive_group()
    size.add_argument(
        "--pruned",
        dest="full",
        action="store_false",
        help="the types that Volatility's Linux plugins and pse use: small and quick to load (default)",
    )
    size.add_argument("--full", action="store_true", help="every type and symbol of the kernel")
    one.set_defaults(full=False)
    _add_cache(one)

    one = actions.add_parser(
        "show",
        help="show one table: kernel, size, what it holds",
        description="One table in short: the kernel it is for, where it is, how much it holds.",
    )
    one.add_argument("table", metavar="TABLE", help="a path, or how a release or build-id begins")
    one.add_argument("--type", metavar="NAME", help="show the members of a struct, union or enum")
    one.add_argument("--symbol", metavar="NAME", help="show a symbol's address and type")
    _add_cache(one)

    one = actions.add_parser(
        "prune-cache",
        help="remove tables that have not been used for long",
        description="Remove tables that were not used for long, or that an older pse made. They are made "
        "again when they are needed.",
    )
    one.add_argument(
        "--days",
        type=float,
        default=90.0,
        metavar="N",
        help="keep what was used in the last N days (default: 90)",
    )
    one.add_argument("--keep", type=int, metavar="N", help="keep at most the N tables used last")
    one.add_argument("--all", action="store_true", help="remove everything")
    _add_cache(one)

    one = actions.add_parser(
        "path", help="print the directory, for Volatility's -s", description="The directory."
    )
    _add_cache(one)


def run(arguments: argparse.Namespace) -> int:
    """Carries out a parsed ``symbols`` command; returns the exit status.  Raises `PseError`."""
    cache = Cache(arguments.cache) if arguments.cache else Cache.default()
    action = {
        "list": _list,
        "build": _build,
        "show": _show,
        "prune-cache": _prune,
        "path": _path,
    }[arguments.action]
    return action(cache, arguments)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", metavar="DIR", type=Path, help=_WHERE)


def _path(cache: Cache, _arguments: argparse.Namespace) -> int:
    print(cache.directory)
    return 0


def _list(cache: Cache, arguments: argparse.Namespace) -> int:
    entries = cache.entries()
    if arguments.json:
        for entry in entries:
            print(json.dumps(_facts(entry)))
        return 0
    if not entries:
        print(
            f"No symbol tables in {cache.directory} yet: they are made when they are needed.", file=sys.stderr
        )
        return 0
    table = _table("RELEASE", "BUILD-ID", "KIND", "MIB", "USED", "FILE")
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            _harmless(release_of(entry.banner)),
            entry.build_id[:12] or "-",
            "full" if entry.full else "pruned",
            f"{entry.size / (1 << 20):.1f}",
            used,
            entry.path.name,
        )
    _print(table)
    return 0


def _build(cache: Cache, arguments: argparse.Namespace) -> int:
    # The decoders are imported when they are wanted: `pse symbols list` answers at once.
    from symbols import sources

    show = _Progress()
    try:
        if arguments.output is None:
            print(sources.build(arguments.source, cache, full=arguments.full, progress=show))
            return 0
        document = sources.isf(arguments.source, full=arguments.full, progress=show)
    finally:
        show.clear()
    content = json.dumps(document, separators=(",", ":")).encode("ascii")
    if arguments.output.suffix == ".xz":
        import lzma

        content = lzma.compress(content)
    write_atomically(arguments.output, content)
    print(arguments.output)
    return 0


def _show(cache: Cache, arguments: argparse.Namespace) -> int:
    path = _chosen(cache, arguments.table)
    try:
        opened = path.read_bytes()
        if path.suffix == ".xz":
            import lzma

            opened = lzma.decompress(opened)
        document = json.loads(opened)
        types, enums, symbols = document["user_types"], document["enums"], document["symbols"]
    except OSError as error:
        raise TargetError(f"{path} cannot be read ({error.strerror}): check the name") from error
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise TargetError(f"{path} is no symbol table ({error!r}): build it again") from error
    if arguments.type:
        found = types.get(arguments.type) or enums.get(arguments.type)
        if found is None:
            raise TargetError(
                f"{path.name} has no type {arguments.type}: check the name, or build the table with --full"
            )
        return _show_type(arguments.type, found)
    if arguments.symbol:
        symbol = symbols.get(arguments.symbol)
        if symbol is None:
            raise TargetError(f"{path.name} has no symbol {arguments.symbol}: build the table with --full")
        print(
            f"{symbol['address']:#x} {arguments.symbol}: {_harmless(_spelled(symbol.get('type', _FUNCTION)))}"
        )
        return 0
    import base64

    banner = base64.b64decode(symbols.get("linux_banner", {}).get("constant_data", "")).decode("latin-1")
    for name, value in (
        ("file", path),
        ("kernel", _harmless(banner.strip("\0\n")) or "unknown"),
        ("types", len(types)),
        ("enumerations", len(enums)),
        ("symbols", len(symbols)),
        (
            "with a type",
            sum(1 for one in symbols.values() if one.get("type", {"name": "void"}).get("name") != "void"),
        ),
    ):
        print(f"{name:13} {value}")
    return 0


def _show_type(name: str, found: dict[str, Any]) -> int:
    if "constants" in found:
        table = _table("CONSTANT", "VALUE", title=f"enum {name}")
        for constant, value in found["constants"].items():
            table.add_row(_harmless(constant), str(value))
    else:
        table = _table("OFFSET", "MEMBER", "TYPE", title=f"{found['kind']} {name}, {found['size']} bytes")
        for member, field in sorted(found["fields"].items(), key=lambda item: item[1]["offset"]):
            table.add_row(f"{field['offset']:#x}", _harmless(member), _harmless(_spelled(field["type"])))
    _print(table)
    return 0


def _spelled(descriptor: dict[str, Any]) -> str:
    """A type descriptor in C, more or less."""
    stars = ""
    dimensions = ""
    while True:
        kind = descriptor["kind"]
        if kind == "pointer":
            stars += "*"
            inner = descriptor["subtype"]
        elif kind == "array":
            dimensions += f"[{descriptor['count']}]"
            inner = descriptor["subtype"]
        elif kind == "bitfield":
            dimensions = f":{descriptor['bit_length']}"
            inner = descriptor["type"]
        else:
            break
        descriptor = inner
    name = descriptor.get("name", "()")
    word = f"{kind} {name}" if kind in ("struct", "union", "enum") else str(name)
    return " ".join(part for part in (word, stars + dimensions) if part)


def _prune(cache: Cache, arguments: argparse.Namespace) -> int:
    removed = cache.prune(days=arguments.days, keep=arguments.keep, everything=arguments.all)
    tables = [path for path in removed if path.suffix == ".json"]
    print(f"{len(tables)} tables removed, {len(cache.entries())} kept in {cache.directory}")
    return 0


def _chosen(cache: Cache, wanted: str) -> Path:
    if "/" in wanted or wanted.endswith((".json", ".json.xz")):
        path = Path(wanted)
        return path if path.exists() else cache.tables / wanted
    fits = [
        entry
        for entry in cache.entries()
        if release_of(entry.banner).startswith(wanted)
        or (entry.build_id and entry.build_id.startswith(wanted))
    ]
    if not fits:
        raise TargetError(f"no table for {wanted} is kept: see pse symbols list")
    kernels = {(entry.banner, entry.build_id) for entry in fits}
    if len(kernels) > 1:
        names = ", ".join(sorted(f"{release_of(banner)} ({build_id[:12]})" for banner, build_id in kernels))
        raise TargetError(f"{wanted} fits several tables, {names}: say more of the release or build-id")
    return fits[0].path


def _facts(entry: Entry) -> dict[str, object]:
    return {
        "release": release_of(entry.banner),
        "banner": entry.banner.strip(),
        "build_id": entry.build_id,
        "full": entry.full,
        "size": entry.size,
        "used": datetime.datetime.fromtimestamp(entry.used, datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "path": str(entry.path),
    }


class _Progress:
    """One line on stderr that is written over, if stderr is a terminal."""

    def __init__(self) -> None:
        self._width = 0

    def __call__(self, percent: float, text: str) -> None:
        if sys.stderr.isatty():
            line = f"{percent:3.0f} % {text}"
            print(f"\r{line:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)

    def clear(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)


def _table(*columns: str, title: str | None = None) -> Table:
    import rich.box
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("MIB", "VALUE") else "left")
    return table


def _print(table: Table) -> None:
    import rich.console

    console = rich.console.Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _harmless(text: str) -> str:
    """Names come from a guest: control characters are made visible (markup is off)."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
