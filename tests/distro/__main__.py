"""``python -m tests.distro``: boot a Debian, watch it, and say how exact the events and the fields were."""

from __future__ import annotations

import argparse
import gc
import sys

from tests.accuracy.options import MODES
from tests.distro import report
from tests.distro.kernels import NAMES
from tests.distro.run import run
from tests.guest.command import run_command


def main(argv: list[str] | None = None) -> int:
    """Run and print; 1 if an event or a field is not right."""
    parser = argparse.ArgumentParser(prog="python -m tests.distro", description=__doc__)
    parser.add_argument("--kernel", choices=NAMES, default="6.1", help="which kernel (default: 6.1, cloud)")
    parser.add_argument("--cpus", type=int, default=1, help="how many vCPUs (default: 1)")
    parser.add_argument("--mode", choices=MODES, default="plugin", help="how to watch (default: plugin)")
    parser.add_argument("--short", action="store_true", help="no containers, compiler, packages, stress-ng")
    parser.add_argument(
        "--examples", type=int, default=4, metavar="N", help="kinds to show of what is not right (default: 4)"
    )
    options = parser.parse_args(argv)
    gc.disable()  # a collection over all documents takes a second, in which nobody reads them
    outcome = run(
        options.kernel,
        cpus=options.cpus,
        mode=options.mode,
        short=options.short,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(report.text(outcome, examples=options.examples))
    return 0 if outcome.score.exact and not outcome.fields.wrong and not outcome.invariants else 1


if __name__ == "__main__":
    run_command(main)
