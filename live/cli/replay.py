"""`pse replay`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from live.cli import common

if TYPE_CHECKING:
    from live.core.events import Event
    from live.recording.file import Recording
    from live.recording.replay import Replay

_DESCRIPTION = """\
Derive the events of a recording again from the memory in it, and show them as pse watch does.
Should one come out otherwise than it was seen live, this is said, and the exit status is 1.
"""
_EXAMPLES = """\
  pse replay run.pse
  pse replay run.pse --numbers | grep nc   then pse export run.pse --at NUMBER
  pse replay run.pse --json > events.json
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = common.command(commands, "replay", "show the events of a recording", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording, made with pse record")
    common.add_output(parser)
    parser.add_argument("--numbers", action="store_true", help="lines with the number of each event")
    parser.add_argument("--new", action="store_true", help="leave out processes that were running already")
    parser.add_argument("--kernel-threads", action="store_true", help="show kernel threads too")
    parser.add_argument("--count", type=common.count, metavar="N", help="stop after this many events")
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="show the events as they were recorded; derive nothing (faster)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Replay; returns the exit status."""
    from live.core.events import is_kernels
    from live.output.columns import reason
    from live.recording.opening import open_recording
    from live.recording.replay import Replay

    with open_recording(arguments.file) as recording:
        head = recording.header
        common.say(f"{head.target}: {head.title}, recorded in {head.mode} mode by {head.writer}")
        if recording.end() is None:
            common.say("its recorder was killed, or has not ended yet: this is what it had written")
        numbered = _Numbered() if arguments.numbers and arguments.output != common.ECS else None
        replay = None if arguments.recorded else Replay(recording)
        known = replay or head
        sink = numbered or common.sink(arguments.output, lambda: known.system, head.target, head.mode)
        events = (
            replay.events() if replay is not None else ((one.number, one.event) for one in recording.events())
        )
        shown = 0
        try:
            for number, event in events:
                if not (arguments.kernel_threads or not is_kernels(event)):
                    continue
                if arguments.new and reason(event) == "running":
                    continue
                if numbered is not None:
                    numbered.number = number
                sink.show(event)
                shown += 1
                if shown == arguments.count:
                    break
        finally:
            sink.close()
        return _verdict(recording, replay)


def _verdict(recording: Recording, replay: Replay | None) -> int:
    if replay is None or replay.first is None:
        return common.EXIT_OK
    common.say(
        f"{replay.differences} events came out otherwise than they were recorded, first event "
        f"{replay.first.number} (step {replay.first.step}): the file was changed, or this version reads "
        f"memory in another way; --recorded shows the events as they were seen by {recording.header.writer}"
    )
    return common.EXIT_ERROR


class _Numbered:
    """Plain lines, each with its event's number."""

    def __init__(self) -> None:
        from live.output import table

        self._row = table.row
        self.number = 0
        print(f"{'EVENT':>7}  {table.header()}")

    def show(self, event: Event) -> None:
        print(f"{self.number:>7}  {self._row(event)}", flush=True)

    def pause(self, summary: Callable[[], str]) -> None:
        """There is nothing that waits."""

    def close(self) -> None:
        """Everything is printed."""
