"""How a command of the lab ends: always cleanly, so that no guest runs on and no file is left."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import LabError

INTERRUPTED = 130
"""The exit status of a command that was ended before it was done, as a shell says it."""


def run_command(main: Callable[..., int | None], *arguments: object) -> NoReturn:
    """Run ``main(*arguments)`` and exit with what it returns.

    SIGTERM ends it as Ctrl-C does, by an exception, and SIGINT also where a shell started us in the
    background, with the signal ignored.  A `LabError` is said in one line; the exit status is then 1.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main(*arguments))
    except LabError as error:
        sys.exit(f"lab: {error}")
    except KeyboardInterrupt:
        print("\nended before it was done", file=sys.stderr)
        sys.exit(INTERRUPTED)
