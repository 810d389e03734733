"""`pse verify`: how exact the events are, measured against the guest's own record.

The guests, the workloads and the comparison are the lab's (``tests/guest``, ``tests/accuracy``), which
comes with the checkout and not with the wheel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from live.core.errors import TargetError

ROOT = Path(__file__).parents[1]
KERNELS = ("5.10", "6.1", "6.12", "7.2")
MODES = ("plugin", "gdbstub", "poll")


def add_parsers(commands: Any) -> None:
    """Add the command; ``commands`` is what `argparse.ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser(
        "verify",
        help="measure in real guests how exact the events are",
        description="Boot guests, torture them, and compare what `pse watch --json` shows with what the "
        "guest's own tracer recorded: true, seen, missed, false, wrong field, for each kernel, mode and row "
        "of the event contract. Needs the project's checkout, whose lab fetches kernels and QEMU.",
        epilog="example:\n  pse verify --kernel 6.1 --mode plugin --quick\n\n"
        "exit status: 0 every trap mode was exact, 1 not, or a guest did not boot, 2 wrong usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.set_defaults(run=_verify)


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


def _verify(arguments: argparse.Namespace) -> int:
    if not (ROOT / "tests" / "accuracy" / "__main__.py").exists():
        raise TargetError(
            "pse verify measures in the guests of the project's lab, which is not part of the installed "
            "package; run it from a checkout"
        )
    words = sys.argv[sys.argv.index("verify") + 1 :]
    command = [sys.executable, "-m", "tests.accuracy", *words]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode
