"""What `pse record`, `pse replay` and `pse export` take; `live.cli.recording_commands` does it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS = (
    "exit status: 0 done or interrupted with Ctrl-C, 1 error (one sentence on standard error),\n"
    "2 wrong usage; 3 (record) the guest ended, was reset, or could no longer be read"
)


def add_parsers(commands: Any) -> None:
    """Add the commands; ``commands`` is what `argparse.ArgumentParser.add_subparsers` returned."""
    _add_record(commands)
    _add_replay(commands)
    _add_export(commands)


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """A command, imported when it is run: --help need not wait for Volatility."""

    def run(arguments: argparse.Namespace) -> int:
        status: int = getattr(importlib.import_module("live.cli.recording_commands"), name)(arguments)
        return status

    return run


def _parser(
    commands: Any, name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}\n{_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_record(commands: Any) -> None:
    record = _parser(
        commands,
        "record",
        "record what happens in a guest into one file",
        "Record the processes of a guest, and the memory that was read to see them, into one file that\n"
        "gives the same events again, without the guest. Ctrl-C ends it; the guest runs on, and whatever\n"
        "happens to this command, the file can be replayed up to then.",
        "  pse record -o run.pse                         the only running guest, until Ctrl-C\n"
        "  pse record web-1 -o run.pse --duration 60 --keyframe-on 'exec:*/nc'\n",
    )
    record.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="a monitor socket, the pid of a QEMU process, or a VM's name (default: the only guest)",
    )
    record.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to make")
    record.add_argument("--force", action="store_true", help="replace FILE if it exists")
    record.add_argument("--duration", type=_seconds, metavar="SECONDS", help="stop after this time")
    record.add_argument("--count", type=_number, metavar="N", help="stop after N events, or a few more")
    record.add_argument(
        "--mode",
        choices=("auto", "plugin", "gdbstub", "poll"),
        default="auto",
        help="how to notice what happens, as for pse watch (default: the best that the guest offers)",
    )
    record.add_argument(
        "--interval",
        type=_seconds,
        metavar="MS",
        default=10.0,
        help="milliseconds between two looks in poll mode (default: 10)",
    )
    record.add_argument("--json", action="store_true", help="print the events too, as JSON lines")
    record.add_argument("--kernel-threads", action="store_true", help="with --json: kernel threads too")
    record.add_argument(
        "--level",
        type=int,
        choices=range(1, 20),
        default=3,
        metavar="1..19",
        help="how hard to compress; 19 makes a small file and costs much time (default: 3)",
    )
    frames = record.add_argument_group(
        "keyframes",
        "All of guest memory, for any Volatility plugin at that moment and for pse export. If any\n"
        "are wanted, there is one at the beginning, which takes seconds; those that follow store what\n"
        "changed. The guest stands still meanwhile, where it can be made to. A filter is KIND:PATTERN;\n"
        "KIND is start, exec, end or any; PATTERN (* ? [...]) fits the path of the executable if it has\n"
        "a slash, else the name alone.",
    )
    frames.add_argument(
        "--keyframe-start", action="store_true", help="one at the beginning, even if no others are wanted"
    )
    frames.add_argument(
        "--keyframe-every", type=_seconds, metavar="SECONDS", help="one after every so many seconds"
    )
    frames.add_argument(
        "--keyframe-on",
        action="append",
        default=[],
        metavar="FILTER",
        help="one at each event that fits: exec:*/nc, end:sshd (repeatable)",
    )
    record.set_defaults(run=_command("record"))


def _add_replay(commands: Any) -> None:
    replay = _parser(
        commands,
        "replay",
        "show the events of a recording",
        "Derive the events of a recording again from the memory in it, and show them as pse watch does.\n"
        "Should one come out otherwise than it was seen live, this is said, and the exit status is 1.",
        "  pse replay run.pse\n"
        "  pse replay run.pse --numbers | grep nc    then: pse export run.pse --at NUMBER ...\n"
        "  pse replay run.pse --json > events.json\n",
    )
    replay.add_argument("file", type=Path, metavar="FILE", help="a recording, made with pse record")
    replay.add_argument(
        "--json", action="store_true", help="JSON lines with ECS field names, as they were live"
    )
    replay.add_argument("--numbers", action="store_true", help="lines with the number of each event")
    replay.add_argument("--new", action="store_true", help="leave out processes that were running already")
    replay.add_argument("--kernel-threads", action="store_true", help="show kernel threads too")
    replay.add_argument("--count", type=_number, metavar="N", help="stop after this many events")
    replay.add_argument(
        "--recorded",
        action="store_true",
        help="show the events as they were recorded; derive nothing (faster)",
    )
    replay.set_defaults(run=_command("replay"))


def _add_export(commands: Any) -> None:
    export = _parser(
        commands,
        "export",
        "write the guest's memory at an event to a file",
        "Write guest-physical memory as it was at an event, for any tool that reads memory images. All of\n"
        "it is known where a keyframe was taken.",
        "  pse export run.pse --at 'exec:*/nc' -o nc.elf\n  pse export run.pse --at 17 -o frame.raw\n",
    )
    export.add_argument("file", type=Path, metavar="FILE", help="a recording, made with pse record")
    export.add_argument(
        "--at",
        required=True,
        metavar="EVENT",
        help="number of an event (pse replay --numbers), first, last, or the first that fits KIND:PATTERN",
    )
    export.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="an ELF core if it ends in .elf, else raw",
    )
    export.add_argument("--force", action="store_true", help="replace OUT if it exists")
    export.add_argument(
        "--partial",
        action="store_true",
        help="without a keyframe at the event, write what was last seen of each page, and zeros for the rest",
    )
    export.add_argument(
        "--symbols", type=Path, metavar="ISF", help="also write the kernel's symbol table, for vol -s"
    )
    export.set_defaults(run=_command("export"))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
