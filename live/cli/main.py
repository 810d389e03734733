"""The `pse` command: its parts, and how it ends."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from live.cli.common import EXIT_ERROR, EXIT_GUEST_GONE, EXIT_OK, STATUS, Parser, say
from live.core.errors import GuestGone, PseError
from live.hypervisors import registry as hypervisors

COMMANDS = ("watch", "ps", "vms", "symbols", "record", "replay", "export")
"""Modules of this package, each with ``add(commands)``; a hypervisor may have commands of its own."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog="pse",
        description="Process start, exec and end events of a virtual machine, seen from outside the guest: "
        "no agent, no patched hypervisor, no symbol files to hunt for.",
        epilog=STATUS,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in (*(f"live.cli.{one}" for one in COMMANDS), *hypervisors.COMMANDS):
        importlib.import_module(name).add(commands)
    return top


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
        say(str(error))
        return EXIT_GUEST_GONE
    except PseError as error:
        say(str(error))
        return EXIT_ERROR
    return status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
