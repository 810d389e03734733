"""What `python -m tests.accuracy` may be asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

KERNELS = ("5.10", "6.1", "6.12", "7.2")
MODES = ("plugin", "gdbstub", "asid", "diff", "poll")
INEXACT = frozenset({"diff", "poll"})
"""Those that are not expected to see everything."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to measure; options that name something may be repeated, and mean all if not given."""
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="which kernel (default: all)")
    parser.add_argument("--mode", action="append", choices=MODES, help="which mode (default: all)")
    parser.add_argument("--cpus", action="append", type=int, help="how many vCPUs (default: 1, 2 and 4)")
    parser.add_argument(
        "--pti", action="append", choices=("off", "on"), help="page-table isolation (default: off and on)"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="at least so many in each guest (default: by mode)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="some hundred processes in each guest, no stress-ng; 1 vCPU and PTI off unless given",
    )
    parser.add_argument("--no-stress", action="store_true", help="leave out stress-ng")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="keep the results there, one JSON object a line; what it has already is not measured again",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the tables, as Markdown")
