"""`pse plugin`: what lets a QEMU guest be watched in plugin mode."""

from __future__ import annotations

import argparse
import os
from typing import Any

_DESCRIPTION = """\
Build QEMU's trap plugin (once, with the C compiler of this machine) and print what follows -plugin on QEMU's
command line. A guest that is started with it runs at full speed until somebody watches it.
"""
_EXAMPLE = """\
example:
  qemu-system-x86_64 -plugin "$(pse plugin /run/vm1.trap)" -name vm1 ...
  pse watch vm1
"""


def add(commands: Any) -> None:
    """Add the command; ``commands`` is what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser(
        "plugin",
        help="print the option that lets a QEMU guest be watched in plugin mode",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    parser.add_argument("socket", metavar="SOCKET", help="path of the socket at which the plugin will listen")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Build, print; returns the exit status."""
    from live.hypervisors.qemu.plugin import build  # noqa: PLC0415 - --help need not wait

    print(build.argument(os.path.abspath(arguments.socket)))
    return 0
