"""`pse vms`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from live.cli import common
from live.core.text import printable
from live.hypervisors import registry


def add(commands: Any) -> None:
    """Add the command."""
    parser = common.command(
        commands,
        "vms",
        "list the running guests",
        "The running guests that can be seen from here, of every hypervisor that is known.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List; returns the exit status."""
    from rich.console import Console
    from rich.table import Table

    guests = registry.guests(failed=common.say)
    if not guests:
        common.say(
            "no guest is running on this machine (or none that you may see); the guest of any other "
            "hypervisor can be named by its process: --pid N"
        )
        return common.EXIT_ERROR
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "PID", "MEMORY", "VCPUS", "ACCEL", "HYPERVISOR", "MONITOR"):
        table.add_column(title, justify="right" if title in ("PID", "MEMORY", "VCPUS") else "left")
    for hypervisor, guest in guests:
        table.add_row(
            printable(guest.name),
            str(guest.pid or "-"),
            f"{guest.memory >> 20} MiB" if guest.memory else "-",
            str(guest.vcpus or "-"),
            printable(guest.accelerator) or "-",
            hypervisor.scheme,
            printable(guest.control) or "-",
        )
    # A pipe has no width: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    return common.EXIT_OK
