"""What several commands share: options, attaching, and how to speak to the user."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from live.core.text import printable
from live.hypervisors import registry as hypervisors
from live.output import registry as outputs
from live.output.contract import Context, Sink

if TYPE_CHECKING:  # imported when used: Volatility takes 0.4 s to import, and --help need not wait
    from live.core.events import Event
    from live.core.system import System
    from live.watch.session import Session

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_GUEST_GONE = 0, 1, 2, 3
STATUS = """\
exit status: 0 done or interrupted with Ctrl-C, 1 error (one sentence on standard error), 2 wrong usage,
3 the guest ended, was reset, or could no longer be read while it was watched.
"""
ECS = "ecs"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prose is wrapped to the terminal; a line that is indented stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        shown: list[str] = []
        for kept, group in itertools.groupby(text.splitlines(), lambda line: line[:1] in ("", " ")):
            lines = list(group)
            shown += lines if kept else textwrap.wrap(" ".join(lines), width)
        return "".join(f"{indent}{line}".rstrip() + "\n" for line in shown)


class Parser(argparse.ArgumentParser):
    """One whose help, and that of its commands, is shown by `HelpFormatter`."""

    def __init__(self, **settings: Any) -> None:
        """Takes what `argparse.ArgumentParser` takes."""
        super().__init__(**{"formatter_class": HelpFormatter, **settings})


def command(
    commands: Any, name: str, summary: str, description: str, examples: str = ""
) -> argparse.ArgumentParser:
    """A new command; ``commands`` is what `argparse.ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=(f"examples:\n{examples}\n" if examples else "") + STATUS,
    )
    return parser


def add_target(parser: argparse.ArgumentParser) -> None:
    """TARGET, or --pid."""
    parser.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="a VM's name, the pid of its hypervisor, a monitor socket, or SCHEME:TARGET, where SCHEME is "
        f"{', '.join(hypervisors.schemes())}; without it, the only running guest",
    )
    parser.add_argument(
        "--pid",
        type=count,
        metavar="N",
        help="the guest of process N, whatever hypervisor it is, by its memory alone (the same as process:N)",
    )
    parser.add_argument(
        "--max-args",
        type=size,
        metavar="BYTES",
        help="how much of a command line to keep; of a longer one, the rest is left out, and "
        "pse.args_truncated is set (default: 131072)",
    )


def target_of(arguments: argparse.Namespace) -> str | None:
    """What the user named."""
    if arguments.pid is None:
        target: str | None = arguments.target
        return target
    if arguments.target is not None:
        raise SystemExit(_usage("give a TARGET or --pid, not both"))
    return f"process:{arguments.pid}"


def _usage(what: str) -> int:
    print(f"pse: {what}", file=sys.stderr)
    return EXIT_USAGE


def add_watching(parser: argparse.ArgumentParser) -> None:
    """How to notice what happens."""
    parser.add_argument(
        "--mode",
        default="auto",
        help="how to notice what happens: a mode of the guest that traps the kernel's own functions (plugin, "
        "gdbstub); asid, which traps asid changes and system calls and needs no function's address; diff, "
        "which compares task lists at asid changes; poll, which takes snapshots at intervals (default: auto, "
        "the best that the guest offers)",
    )
    parser.add_argument(
        "--interval",
        type=positive,
        metavar="MS",
        default=10.0,
        help="milliseconds between two snapshots in poll mode (default: 10)",
    )
    parser.add_argument("--kernel-threads", action="store_true", help="show kernel threads too")


def add_output(parser: argparse.ArgumentParser, default: str | None = outputs.DEFAULT) -> None:
    """--output, --json."""
    parser.add_argument(
        "--output",
        default=default,
        metavar="NAME",
        help=f"how to show events: {', '.join(outputs.names())}"
        + (f" (default: {default})" if default else " (default: not at all)"),
    )
    parser.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const=ECS,
        help="JSON lines with ECS field names: the same as --output ecs",
    )


def sink(name: str, system: Callable[[], System], host: str, mode: str) -> Sink:
    """The output that the user named, to standard output.  Raises `TargetError` if there is none.

    ``system``: the boot as far as it is known, asked for at each event.
    """
    context = Context(out=sys.stdout, system=system(), host=host, mode=mode)
    return _Current(outputs.output(name)(context), context, system)


class _Current:
    """A `Sink` whose context is up to date."""

    def __init__(self, to: Sink, context: Context, system: Callable[[], System]) -> None:
        self._context, self._system, self._show = context, system, to.show
        self.pause, self.close = to.pause, to.close

    def show(self, event: Event) -> None:
        self._context.system = self._system()
        self._show(event)


def say(text: str) -> None:
    """One line to the user, beside the output."""
    print(f"pse: {printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def attached(arguments: argparse.Namespace) -> Iterator[Session]:
    """A session, with its progress on standard error where that is a terminal.

    ``arguments``: those of `add_target`.
    """
    from rich.console import Console

    from live.watch.session import Session

    target, most = target_of(arguments), arguments.max_args
    console = Console(stderr=True)
    if not console.is_terminal:
        with Session(target, max_args=most) as session:
            yield session
        return
    status = console.status("attaching ...")
    status.start()
    try:
        session = Session(
            target,
            progress=lambda percent, text: status.update(f"{text} ({percent:.0f} %)"),
            max_args=most,
        )
    finally:
        status.stop()
    with session:
        yield session


def positive(text: str) -> float:
    """A positive, finite number."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def size(text: str) -> int:
    """A number of bytes that fit into memory."""
    value = count(text)
    if value >= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text} is not less than 1 GiB")
    return value


def count(text: str) -> int:
    """A number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
