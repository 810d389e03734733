"""`pse watch`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from live.cli import common

if TYPE_CHECKING:
    from live.watch.monitor import Monitor

_DESCRIPTION = """\
Show processes start, exec and end while the guest runs. On a terminal a table, into a pipe plain lines, with
--json one Elastic Common Schema document a line. Ctrl-C ends it; the guest runs on.
"""
_EXAMPLES = """\
  pse watch                      the only running guest
  pse watch web-1 --duration 60  one minute of the VM web-1
  pse watch --pid 4711           the guest of process 4711, whatever VMM it is
  pse watch --new --json | jq -r .process.command_line
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = common.command(
        commands, "watch", "show processes start, exec and end, live", _DESCRIPTION, _EXAMPLES
    )
    common.add_target(parser)
    parser.add_argument("--duration", type=common.positive, metavar="SECONDS", help="stop after this time")
    parser.add_argument(
        "--count", type=common.count, metavar="N", help="stop after this many events (an exec has three)"
    )
    common.add_watching(parser)
    common.add_output(parser)
    parser.add_argument("--new", action="store_true", help="leave out processes that were running already")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Watch; returns the exit status."""
    from live.output.columns import reason
    from live.watch.monitor import Monitor

    with common.attached(arguments) as session:
        monitor = Monitor(
            session,
            mode=arguments.mode,
            interval=arguments.interval / 1000,
            kernel_threads=arguments.kernel_threads,
        )
        try:
            sink = common.sink(arguments.output, lambda: session.system, session.name, monitor.mode)
        except BaseException:
            monitor.close()
            raise
        if monitor.traps:
            hurry()
        every = "" if monitor.traps else f" every {arguments.interval:g} ms"
        common.say(
            f"{session.name}: {session.os.title}, {monitor.mode} mode{every}, memory "
            f"{session.guest.memory.description}"
        )
        common.say(monitor.guarantee)
        for note in (*session.notes, *(f"not {why}" for why in monitor.choice.skipped)):
            common.say(note)
        began, cpu = time.monotonic(), time.process_time()
        left = arguments.count

        def summary() -> str:
            return _summary(monitor, began, cpu)

        try:
            for batch in monitor.batches(duration=arguments.duration):
                for event in batch:
                    if arguments.new and reason(event) == "running":
                        continue
                    sink.show(event)
                    if left is not None and (left := left - 1) == 0:
                        return common.EXIT_OK
                if not batch:
                    sink.pause(summary)
        finally:
            sink.close()
            common.say(summary())
    return common.EXIT_OK


def hurry() -> None:
    """Get in the way of the guest as little as possible: a vCPU stands while we wait.

    So go first, where that is allowed: we use a few percent of a CPU, and on a machine with seven runnable
    processes a core holds ran into their limit without this.  A pipe holds about 60 documents by default, and
    1 MiB holds a thousand.  What is there by now, the symbol table above all, stays: no garbage collection
    need go through it again.
    """
    gc.freeze()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    with contextlib.suppress(OSError, ValueError):  # no pipe, or no file at all
        fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)


def _summary(monitor: Monitor, began: float, cpu: float) -> str:
    counts, cost = monitor.counts, monitor.cost
    elapsed = max(time.monotonic() - began, 1e-9)
    worked = (
        f"{cost.traps} traps, vCPUs held for {cost.held_ns / max(cost.traps, 1) / 1000:.0f} us each"
        if cost.traps
        else f"{cost.snapshots} snapshots of {cost.snapshot_ns / max(cost.snapshots, 1) / 1000:.0f} us"
    )
    text = (
        f"{elapsed:.1f} s: {counts.starts} starts, {counts.execs} execs, {counts.ends} ends; "
        f"{counts.missed} tasks missed; {worked}, "
        f"{(time.process_time() - cpu) / elapsed:.1%} CPU"
    )
    if cost.traps and cost.late:
        text += f"; {cost.late} traps taken too late"
    if counts.late or counts.premature:
        text += f"; {counts.late} seen late, at their end, {counts.premature} premature, inside execve"
    if counts.unexpected or counts.torn:
        text += f"; {counts.unexpected} unexpected, {counts.torn} torn snapshots"
    return text
