"""`pse export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from live.cli import common
from live.core.errors import TargetError
from live.core.memory import PAGE_SIZE

_DESCRIPTION = """\
Write guest-physical memory as it was at an event, for any tool that reads memory images. All of
it is known where a keyframe was taken.
"""
_EXAMPLES = """\
  pse export run.pse --at 'exec:*/nc' -o nc.elf
  pse export run.pse --at 17 -o frame.raw
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = common.command(
        commands, "export", "write the guest's memory at an event to a file", _DESCRIPTION, _EXAMPLES
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording, made with pse record")
    parser.add_argument(
        "--at",
        required=True,
        metavar="EVENT",
        help="number of an event (pse replay --numbers), first, last, or the first that fits KIND:PATTERN",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="an ELF core if it ends in .elf, else raw",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="without a keyframe at the event, write what was last seen of each page, and zeros for the rest",
    )
    parser.add_argument(
        "--symbols", type=Path, metavar="ISF", help="also write the kernel's symbol table, for vol -s"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit status."""
    from live.recording import export
    from live.recording.filters import find_event
    from live.recording.opening import open_recording
    from live.recording.past_memory import StateMemory

    with open_recording(arguments.file) as recording:
        found = find_event(recording, arguments.at)
        memory = StateMemory(recording, recording.step(found.step), last_known=arguments.partial)
        total = sum(segment.length for segment in memory.segments) // PAGE_SIZE
        if not memory.complete and not arguments.partial:
            raise TargetError(
                f"at event {found.number} only {memory.pages} of {total} pages of memory are recorded; "
                "choose one with a keyframe (record with --keyframe-on), or take what there is with --partial"
            )
        size = export.export(memory, arguments.output, force=arguments.force)
        common.say(f"event {found.number}: {size >> 20} MiB in {arguments.output}")
        if memory.complete and not memory.still:
            common.say("the guest ran on while this keyframe was taken: its pages are not all of one moment")
        if not memory.complete:
            common.say(f"{memory.pages} of {total} pages are exact; of others, what was last seen, or zeros")
        if arguments.symbols is not None:
            with export.create(arguments.symbols, arguments.force) as out:
                out.write(recording.symbols())
            common.say(f"the symbol table is in {arguments.symbols}")
    return common.EXIT_OK
