"""The `pse` command."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import io
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

import live.cli.recording
import live.cli.symbols
from live.core.errors import GuestGone, PseError
from live.core.text import printable

if TYPE_CHECKING:  # imported when used: Volatility takes 0.4 s to import, and --help need not wait
    from live.watch.monitor import Monitor
    from live.watch.session import Session

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_GUEST_GONE = 0, 1, 2, 3

_EPILOG = """\
exit status: 0 done or interrupted with Ctrl-C, 1 error (one sentence on standard error), 2 wrong usage,
3 the guest ended, was reset, or could no longer be read while it was watched.
"""
_TARGET = "a monitor socket, the pid of a QEMU process, or a VM's name; without it, the only running guest"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="pse",
        description="Process start, exec and end events of a virtual machine, seen from outside the guest: "
        "no agent, no patched hypervisor, no symbol files to hunt for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    watch = commands.add_parser(
        "watch",
        help="show processes start, exec and end, live",
        description="Show processes start, exec and end while the guest runs. On a terminal a table, into "
        "a pipe plain lines, with --json one Elastic Common Schema document a line. Ctrl-C ends "
        "it; the guest runs on.",
        epilog="examples:\n  pse watch                      the only running guest\n"
        "  pse watch web-1 --duration 60  one minute of the VM web-1\n"
        "  pse watch --new --json | jq -r .process.command_line\n\n" + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    watch.add_argument("target", nargs="?", metavar="TARGET", help=_TARGET)
    watch.add_argument("--duration", type=_positive, metavar="SECONDS", help="stop after this time")
    watch.add_argument(
        "--count", type=_count, metavar="N", help="stop after this many events (an exec has three)"
    )
    watch.add_argument(
        "--mode",
        choices=("auto", "plugin", "gdbstub", "poll"),
        default="auto",
        help="how to notice what happens: plugin and gdbstub trap every event, poll looks at intervals "
        "(default: auto, the best that the guest offers, in this order)",
    )
    watch.add_argument(
        "--interval",
        type=_positive,
        metavar="MS",
        default=10.0,
        help="milliseconds between two looks at the guest (default: 10)",
    )
    watch.add_argument("--json", action="store_true", help="JSON lines with ECS field names")
    watch.add_argument("--new", action="store_true", help="leave out processes that were running already")
    watch.add_argument("--kernel-threads", action="store_true", help="show kernel threads too")
    watch.set_defaults(run=_watch)

    ps = commands.add_parser(
        "ps",
        help="list the processes of a guest, now",
        description="One look: every process of the guest, kernel threads and zombies included. A zombie is "
        "shown as an end: it has ended, and its parent has not asked for its status yet.",
    )
    ps.add_argument("target", nargs="?", metavar="TARGET", help=_TARGET)
    ps.add_argument("--json", action="store_true", help="JSON lines with ECS field names")
    ps.set_defaults(run=_ps)

    vms = commands.add_parser("vms", help="list the running guests", description="Running QEMU guests.")
    vms.set_defaults(run=_vms)

    plugin = commands.add_parser(
        "plugin",
        help="print the option that lets a guest be watched in plugin mode",
        description="Build QEMU's trap plugin (once, with the C compiler of this machine) and print what "
        "follows -plugin on QEMU's command line. A guest that is started with it runs at full speed "
        "until somebody watches it.",
        epilog='example:\n  qemu-system-x86_64 -plugin "$(pse plugin /run/vm1.trap)" -name vm1 ...\n'
        "  pse watch vm1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plugin.add_argument("socket", metavar="SOCKET", help="path of the socket at which the plugin will listen")
    plugin.set_defaults(run=_plugin)

    live.cli.symbols.add_parsers(commands)
    live.cli.recording.add_parsers(commands)
    return top


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a guest's name need not fit our locale
    # SIGTERM ends us as Ctrl-C does: cleanly.  And SIGINT does so even where a shell started us in the
    # background, with the signal ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_OK
    except BrokenPipeError:
        # The reader has enough (`| head`). Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except GuestGone as error:
        _complain(error)
        return EXIT_GUEST_GONE
    except PseError as error:
        _complain(error)
        return EXIT_ERROR
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _complain(error: PseError) -> None:
    print(f"pse: {printable(str(error))}", file=sys.stderr)


@contextlib.contextmanager
def _attached(target: str | None) -> Iterator[Session]:
    """A session, with its progress on standard error where that is a terminal."""
    from live.watch.session import Session

    console = Console(stderr=True)
    if not console.is_terminal:
        with Session(target) as session:
            yield session
        return
    status = console.status("attaching ...")
    status.start()
    try:
        session = Session(target, progress=lambda percent, text: status.update(f"{text} ({percent:.0f} %)"))
    finally:
        status.stop()
    with session:
        yield session


def _watch(arguments: argparse.Namespace) -> int:
    from live.output import render
    from live.output.columns import reason
    from live.watch.monitor import Monitor

    with _attached(arguments.target) as session:
        monitor = Monitor(
            session,
            mode=arguments.mode,
            interval=arguments.interval / 1000,
            kernel_threads=arguments.kernel_threads,
        )
        if monitor.mode != "poll":
            _hurry()
        every = f" every {arguments.interval:g} ms" if monitor.mode == "poll" else ""
        print(
            f"pse: {printable(session.name)}: Linux {printable(session.found.release)}, {monitor.mode} mode"
            f"{every}, memory {session.guest.memory.description}\npse: {monitor.guarantee}",
            file=sys.stderr,
        )
        for note in (*session.found.notes, *(f"not {reason}" for reason in monitor.choice.skipped)):
            print(f"pse: {printable(note)}", file=sys.stderr)
        began, cpu = time.monotonic(), time.process_time()
        renderer = render.choose(session.system, json=arguments.json, host=session.name, mode=monitor.mode)
        left = arguments.count

        def summary() -> str:
            return _summary(monitor, began, cpu)

        try:
            for batch in monitor.batches(duration=arguments.duration):
                for event in batch:
                    if arguments.new and reason(event) == "running":
                        continue
                    renderer.show(event)
                    if left is not None and (left := left - 1) == 0:
                        return EXIT_OK
                if not batch:
                    renderer.pause(summary)
        finally:
            renderer.close()
            print(f"pse: {summary()}", file=sys.stderr)
    return EXIT_OK


def _hurry() -> None:
    """A vCPU stands while we wait for a CPU, or for whoever reads our output.

    So go first, where that is allowed: we use a few percent of a CPU.  On a machine with seven runnable
    processes a core, holds ran into their limit without this.  A pipe holds about 60 documents by
    default, and 1 MiB holds a thousand.  What is there by now, the symbol table above all, stays: no
    garbage collection need look at it again.
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
        else f"{cost.snapshots} looks of {cost.snapshot_ns / max(cost.snapshots, 1) / 1000:.0f} us"
    )
    text = (
        f"{elapsed:.1f} s: {counts.starts} starts, {counts.execs} execs, {counts.ends} ends; "
        f"{counts.missed} tasks missed; {worked}, "
        f"{(time.process_time() - cpu) / elapsed:.1%} CPU"
    )
    if cost.traps and cost.late:
        text += f"; {cost.late} traps taken too late"
    if counts.unexpected or counts.torn:
        text += f"; {counts.unexpected} unexpected, {counts.torn} torn looks"
    return text


def _ps(arguments: argparse.Namespace) -> int:
    from live.output import render
    from live.watch.present import present

    with _attached(arguments.target) as session:
        renderer: render.Renderer = (
            render.JsonRenderer(sys.stdout, session.system, host=session.name, mode="poll")
            if arguments.json
            else render.PlainRenderer(sys.stdout)
        )
        for event in present(session.kernel, session.processes, time.time_ns()):
            renderer.show(event)
    return EXIT_OK


def _vms(arguments: argparse.Namespace) -> int:
    from live.hypervisors.qemu.discover import list_guests

    guests = list_guests()
    if not guests:
        print("pse: no QEMU guest is running on this machine (or none that you may see)", file=sys.stderr)
        return EXIT_ERROR
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "PID", "MEMORY", "VCPUS", "ACCEL", "MONITOR"):
        table.add_column(title, justify="right" if title in ("PID", "MEMORY", "VCPUS") else "left")
    for guest in guests:
        table.add_row(
            printable(guest.name),
            str(guest.pid),
            f"{guest.memory >> 20} MiB",
            str(guest.vcpus),
            guest.accel,
            printable(guest.monitors[0]) if guest.monitors else "-",
        )
    # A pipe has no width: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    return EXIT_OK


def _plugin(arguments: argparse.Namespace) -> int:
    from live.hypervisors.qemu.plugin import build

    print(build.argument(os.path.abspath(arguments.socket)))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
