"""Where a guest's plugin listens in a test: known before the guest is started, gone after the run."""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

from live.hypervisors.qemu.plugin import build


def plugin(name: str) -> str:
    """Value of ``-plugin`` with a socket of that name; the same within one run, so that guests are shared."""
    path = Path(tempfile.gettempdir()) / f"pse-test-{os.getpid()}-{name}.sock"
    atexit.register(path.unlink, missing_ok=True)
    return build.argument(path)


def path_of(argument: str) -> str:
    """The socket in such a value."""
    return argument.rpartition("socket=")[2]
