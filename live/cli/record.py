"""`pse record`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from live.cli import common
from live.core.errors import TargetError
from live.output import registry as outputs

SNAPSHOTS = ("asid", "exec", "end")

if TYPE_CHECKING:
    from live.recording.record import Recorder

_DESCRIPTION = """\
Record the processes of a guest, and the memory that was read to see them, into one file that
gives the same events again, without the guest. Ctrl-C ends it; the guest runs on, and whatever
happens to this command, the file can be replayed up to then.
"""
_EXAMPLES = """\
  pse record -o run.pse          the only running guest, until Ctrl-C
  pse record web-1 -o run.pse --duration 60 --keyframe-on 'exec:*/nc'
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = common.command(
        commands, "record", "record what happens in a guest into one file", _DESCRIPTION, _EXAMPLES
    )
    common.add_target(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to make")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--duration", type=common.positive, metavar="SECONDS", help="stop after this time")
    parser.add_argument("--count", type=common.count, metavar="N", help="stop after N events, or a few more")
    common.add_watching(parser)
    parser.add_argument(
        "--show",
        metavar="NAME",
        help=f"show the events too: {', '.join(outputs.names())} (--kernel-threads counts for what is shown)",
    )
    parser.add_argument(
        "--json",
        dest="show",
        action="store_const",
        const=common.ECS,
        help="show the events too, as JSON lines: the same as --show ecs",
    )
    parser.add_argument(
        "--level",
        type=int,
        choices=range(1, 20),
        default=3,
        metavar="1..19",
        help="how hard to compress; 19 makes a small file and costs much time (default: 3)",
    )
    frames = parser.add_argument_group(
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
        "--keyframe-every", type=common.positive, metavar="SECONDS", help="one after every so many seconds"
    )
    frames.add_argument(
        "--keyframe-on",
        action="append",
        default=[],
        metavar="FILTER",
        help="one at each event that fits: exec:*/nc, end:sshd (repeatable)",
    )
    snapshots = parser.add_argument_group(
        "snapshots",
        "The whole task list as it is at a moment, while the vCPU is held: what vol --at and pse export\n"
        "--at then show of that moment is of that moment, not of the last time that somebody looked.",
    )
    snapshots.add_argument(
        "--snapshots",
        action="append",
        default=[],
        choices=SNAPSHOTS,
        help="at every exec, at every end of a process, or at every asid change (with --mode asid or diff; "
        "repeatable)",
    )
    snapshots.add_argument(
        "--snapshot-memory", action="store_true", help="each of them is a keyframe: all of guest memory"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Record; returns the exit status."""
    from live.recording.filters import EventFilter
    from live.recording.record import Recorder
    from live.recording.stepper import Frames, Snapshots

    if arguments.snapshot_memory and not arguments.snapshots:
        raise TargetError("--snapshot-memory says what a snapshot holds; say when with --snapshots")
    snapshots = Snapshots(at=frozenset(arguments.snapshots), whole=arguments.snapshot_memory)
    frames = Frames(
        start=arguments.keyframe_start or arguments.snapshot_memory,
        every=arguments.keyframe_every,
        on=tuple(EventFilter(text) for text in arguments.keyframe_on),
    )
    if arguments.show is not None:
        outputs.output(arguments.show)  # a name that is none is said before anything is made
    with (
        common.attached(arguments) as session,
        Recorder(
            session,
            arguments.output,
            mode=arguments.mode,
            interval=arguments.interval / 1000,
            frames=frames,
            snapshots=snapshots,
            force=arguments.force,
            level=arguments.level,
        ) as recorder,
    ):
        choice = recorder.choice
        common.say(f"{session.name}: {session.os.title}, {choice.mode} mode, into {arguments.output}")
        common.say(choice.guarantee)
        for note in session.notes:
            common.say(note)
        sink = arguments.show and common.sink(
            arguments.show, lambda: recorder.system, session.name, choice.mode
        )
        began = time.monotonic()
        try:
            for event in recorder.events(
                duration=arguments.duration, count=arguments.count, kernel_threads=arguments.kernel_threads
            ):
                if sink:
                    sink.show(event)
        finally:
            if sink:
                sink.close()
            common.say(_summary(recorder, time.monotonic() - began, arguments.output))
    return common.EXIT_OK


def _summary(recorder: Recorder, elapsed: float, path: Path) -> str:
    counts, frames = recorder.counts, recorder.steps.frames
    try:
        size = f"{path.stat().st_size / 1e6:.1f} MB"
    except OSError:
        size = "gone"
    return (
        f"{elapsed:.1f} s: {counts.starts} starts, {counts.execs} execs, {counts.ends} ends; {counts.missed} "
        f"tasks missed; {recorder.writer.last_step} steps, "
        f"{frames} keyframe{'s' * (frames != 1)}, {size} in {path}"
    )
