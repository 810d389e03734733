"""`pse ps`."""

from __future__ import annotations

import argparse
import time
from typing import Any

from live.cli import common


def add(commands: Any) -> None:
    """Add the command."""
    parser = common.command(
        commands,
        "ps",
        "list the processes of a guest, now",
        "One snapshot: every process of the guest, kernel threads and zombies included. A zombie is\n"
        "shown as an end: it has ended, and its parent has not asked for its status yet.",
    )
    common.add_target(parser)
    common.add_output(parser, "plain")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List; returns the exit status."""
    from live.watch.present import present

    with common.attached(arguments) as session:
        for note in session.notes:
            common.say(note)
        sink = common.sink(arguments.output, lambda: session.system, session.name, "poll")
        try:
            for event in present(session.os, time.time_ns()):
                sink.show(event)
        finally:
            sink.close()
    return common.EXIT_OK
