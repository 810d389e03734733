"""From a memory image to a symbol table: CPU seconds, side by side with pakunoda (PyPI) if it is installed.

    python -m tests.bench.symbols [IMAGE [PATH_OF_PAKUNODA]]

Without an image, that of a guest with 512 MiB is taken.  Then `vol ... linux.pslist` on the same image, with
no symbol table given, the first time and again.  Each row is a process of its own, so that imports count; CPU
is user and system time of it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rich.box
import rich.console
import rich.table

from tests.guest import Guest, GuestSpec
from tests.guest.command import run_command
from tests.volplugins import scene

REPEAT = 3
_BUILD = (
    "import sys; from symbols import sources; from symbols.cache import Cache; from pathlib import Path; "
)
_OURS = _BUILD + "sources.build(sys.argv[1], Cache(Path(sys.argv[2])), full=bool(int(sys.argv[3])))"
_FIND = (
    "import sys; from symbols import sources; from symbols.cache import Cache; from pathlib import Path; "
    "from symbols.guest import find_kernel; "
    "find_kernel(sources.open_source(sys.argv[1]).content, cache=Cache(Path(sys.argv[2])))"
)


def measured(command: list[str]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main(image: str | None = None, pakunoda: str | None = None) -> None:
    """Prints the tables."""
    if image is not None:
        print_tables(image, pakunoda)
        return
    with tempfile.TemporaryDirectory() as directory:
        with Guest(GuestSpec()) as guest:
            guest.stop()
            path = scene.copy_ram(guest, Path(directory) / "512.raw")
        print_tables(str(path), pakunoda)


def print_tables(image: str, pakunoda: str | None) -> None:
    """Prints the tables of one image."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    pakunoda = pakunoda or shutil.which("pakunoda")
    table = rich.table.Table("what", "CPU s (best)", "wall s (best)", "runs", box=rich.box.SIMPLE_HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        python = sys.executable
        cache = f"{scratch}/warm"
        rows = [
            ("nothing but starting Python", lambda _: [python, "-c", "pass"], REPEAT),
            ("pruned table", lambda n: [python, "-c", _OURS, image, f"{scratch}/p{n}", "0"], REPEAT),
            ("full table", lambda n: [python, "-c", _OURS, image, f"{scratch}/f{n}", "1"], REPEAT),
            ("pruned table, kept before", lambda _: [python, "-c", _OURS, image, cache, "0"], REPEAT),
            ("find a kernel known before", lambda _: [python, "-c", _FIND, image, cache], REPEAT),
        ]
        if pakunoda:
            rows.append(
                ("pakunoda extract", lambda n: [pakunoda, "extract", image, "-o", f"{scratch}/k{n}.json"], 1)
            )
        measured([python, "-c", _OURS, image, cache, "0"])
        for name, command, repeat in rows:
            try:
                runs = [measured(command(number)) for number in range(repeat)]
            except subprocess.CalledProcessError as error:
                table.add_row(name, f"failed ({error.returncode})", "", "1")
                continue
            table.add_row(
                name, f"{min(r[0] for r in runs):.2f}", f"{min(r[1] for r in runs):.2f}", str(repeat)
            )
        for turn in ("first", "next"):
            runs = [
                scene.vol(
                    "-f",
                    image,
                    "linux.pslist",
                    cwd=Path(scratch),
                    symbols=Path(scratch) / name,
                    pack=scene.packs()[0],
                )
                for name in (
                    [f"v{number}" for number in range(REPEAT)] if turn == "first" else ["v0"] * REPEAT
                )
            ]
            seconds = f"{min(run.seconds for run in runs):.2f}"
            counts = ", ".join(sorted({str(len(run.rows)) for run in runs}))
            table.add_row(f"vol linux.pslist, {turn} time, {counts} rows", "", seconds, str(REPEAT))
    rich.console.Console(width=90).print(table)


if __name__ == "__main__":
    run_command(main, *sys.argv[1:3])
