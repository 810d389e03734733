"""Runs every Linux plugin of Volatility with the pruned and with the full table: rows must be equal.

    python -m tests.symbols.plugins IMAGE [PART_OF_A_PLUGIN_NAME...]

Each plugin is a process of its own (one of them keeps what it saw in a default argument).  A line says how
many rows there are, or how the plugin failed with both tables.  The exit status is 1 if any differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import volatility3.framework
import volatility3.plugins

from symbols.cache import Cache
from symbols.sources import build
from tests.guest.command import run_command

LIMIT = 900
LEFT_OUT = ("vmayarascan", "vmaregexscan", "module_extract", "RecoverFs", "fbdev")


def rows(image: str, directory: Path, plugin: str) -> str:
    """What a plugin prints, or the end of its complaint."""
    code = "import sys, volatility3.cli; sys.argv[0] = 'vol'; volatility3.cli.main()"
    options = ["-q", "-r", "json", "-s", str(directory), "--cache-path", str(directory / "vol"), "-f", image]
    command = [sys.executable, "-c", code, *options]
    try:
        done = subprocess.run([*command, plugin], capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return "out of time"
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-200:]}"


def main(image: str, *parts: str) -> int:
    """Prints one line a plugin."""
    volatility3.framework.import_files(volatility3.plugins, True)
    names = sorted(name for name in volatility3.framework.list_plugins() if name.startswith("linux."))
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        directories = [Path(scratch) / kind for kind in ("pruned", "full")]
        for directory in directories:
            (directory / "vol").mkdir(parents=True)
            build(image, Cache(directory), full=directory.name == "full")
        for name in names:
            if any(left in name for left in LEFT_OUT) or (parts and not any(part in name for part in parts)):
                continue
            pruned, full = (rows(image, directory, name) for directory in directories)
            differing += pruned != full
            outcome = (
                pruned if pruned.startswith(("exit", "out of")) else f"{pruned.count('__children')} rows"
            )
            print("same  " if pruned == full else "DIFFER", name, outcome, flush=True)
    return 1 if differing else 0


if __name__ == "__main__":
    run_command(main, *sys.argv[1:])
