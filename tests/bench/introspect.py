"""What one look costs, on a real guest with about 100 tasks, beside Volatility's own objects."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from live.watch.session import Session
from live.watch.stepper import Stepper
from symbols.cache import Cache
from tests.guest import Guest, GuestSpec
from tests.guest.command import run_command

TASKS = 107
_LISTING = """
import sys, time
from volatility3.framework import automagic, contexts, plugins
from volatility3.framework.automagic import stacker
from volatility3.plugins.linux import pslist
from volatility3 import symbols, framework
framework.require_interface_version(2, 0, 0)
framework.import_files(__import__("volatility3.plugins", fromlist=["x"]), True)
symbols.__path__.insert(0, sys.argv[2])
context = contexts.Context()
context.config["automagic.LayerStacker.single_location"] = "file://" + sys.argv[1]
chosen = automagic.choose_automagic(automagic.available(context), pslist.PsList)
plugin = plugins.construct_plugin(context, chosen, pslist.PsList, "plugins", None, None)
kernel = plugin.config["kernel"]
times = []
for _ in range(5):
    begin = time.perf_counter()
    count = 0
    for task in pslist.PsList.list_tasks(context, kernel):
        (task.pid, task.tgid, task.get_parent_pid(), task.comm, task.cred.uid, task.flags, task.exit_state,
         task.exit_code, task.start_boottime, task.self_exec_id, task.mm, task.signal.nr_threads)
        count += 1
    times.append(time.perf_counter() - begin)
print(count, min(times))
"""


def median_us(function: Callable[[], object], repeat: int = 300) -> float:
    """Median time of a call, in microseconds, after a few to warm up."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter_ns()
        function()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times[repeat // 10 :]) / 1000


def main() -> None:
    """Boot, measure, print."""
    with Guest(GuestSpec()) as guest, tempfile.TemporaryDirectory() as directory:
        with Session(str(guest.monitor)) as session:
            kernel = session.os.kernel
            missing = TASKS - len(kernel.snapshot(0, "").tasks)
            guest.run("".join("sleep 600 & " for _ in range(missing)) + ":")
            time.sleep(1)
            look = kernel.snapshot(0, "")
            init = look.tasks[0]

            def anew() -> None:
                kernel.forget()
                kernel.snapshot(0, "")

            rows = [
                ("did anything change? (counters)", median_us(kernel.counters, 3000), "-"),
                ("task list, 12 fields, first snapshot", median_us(anew), "PANDA osi in C 248; drgn 13 000"),
                (
                    "task list, 12 fields, next snapshot",
                    median_us(lambda: kernel.snapshot(0, "")),
                    "the same",
                ),
                ("one process, every field", median_us(lambda: session.os.processes.describe(init)), "-"),
            ]
            stepper = Stepper(session.os)
            stepper.snapshot(0, "attach")
            difference = median_us(lambda: stepper.snapshot(0, "timer"))
            rows.append(("a snapshot and its difference", difference, "-"))
            count = len(look.tasks)
        guest.stop()
        dump = guest.dump_elf(Path(directory) / "guest.elf")
        # A file and not -c: Volatility finds no table for a program without a file of its own.
        program = Path(directory) / "listing.py"
        program.write_text(_LISTING)
        command = [sys.executable, str(program), str(dump), str(Cache.default().directory)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        theirs, seconds = run.stdout.split()
        rows.append(
            (f"Volatility objects, {theirs} tasks, 12 members", float(seconds) * 1e6, "265 000-614 000")
        )
    else:
        rows.append((f"Volatility objects: {run.stderr.strip().splitlines()[-1]}", float("nan"), "-"))
    table = Table(title=f"{count} tasks, this run, microseconds")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("peers, as published", justify="right")
    for what, value, peers in rows:
        table.add_row(what, f"{value:,.1f}", peers)
    Console(width=100).print(table)


if __name__ == "__main__":
    run_command(main)
