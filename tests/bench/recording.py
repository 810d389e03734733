"""What recording costs, and how fast a recording is seen again: ``python -m tests.bench recording``.

Needs no guest: the steps are those of the synthetic one, replayed from a bundled recording otherwise.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from live.recording.opening import open_recording
from live.recording.replay import Replay
from live.watch.stepper import Stepper
from tests.guest.command import run_command
from tests.recording.build import SYSTEM, Lab
from tests.watch import environment

EVENTS = 1000


class Timed:
    """Steps that are timed."""

    def __init__(self, steps):
        self._steps, self.tracker, self.spent = steps, steps.tracker, []

    def __getattr__(self, name):
        def call(*arguments):
            began = time.perf_counter()
            try:
                return getattr(self._steps, name)(*arguments)
            finally:
                self.spent.append(time.perf_counter() - began)

        return call


def median(values):
    return sorted(values)[len(values) // 2]


def work(lab, recorded):
    """``EVENTS`` events, three steps for five; returns ms a step."""
    if not recorded:
        lab.steps = Stepper(lab.guest.system(system=SYSTEM))
    lab.steps = timed = Timed(lab.steps)
    lab.guest.task(1, b"init")
    lab.snapshot()
    free = None
    for pid in range(100, 100 + EVENTS // 5):
        lab.run(1, pid)
        lab.guest.tasks.pop()  # reaped
        lab.guest.link()
        free = free or lab.guest._free
        lab.guest._free = free if lab.guest._free > 0x1C0000 else lab.guest._free
    return 1000 * median(timed.spent)


_ROWS = """
import itertools, os, sys, time
from pathlib import Path
from volatility3.framework import renderers
from live.recording.opening import open_recording
from live.volatility.output import grid
from live.volatility.output.json_lines import JsonLinesStream
from live.volatility.output.rich_text import RichText
sys.stdout = open(os.devnull, "w")
renderer = {"jsonlines": JsonLinesStream, "rich": RichText}[sys.argv[2]]
with open_recording(Path(sys.argv[1])) as recording:
    events = [one.event for one in recording.events()]
endless = itertools.islice(itertools.cycle(events), int(sys.argv[3]))
began = time.perf_counter()
renderer().render(renderers.TreeGrid(grid.columns(), grid.flat(endless, grid.no_output)))
spent = time.perf_counter() - began
# Not ru_maxrss: it begins with what the process that started this one had.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(f"{spent:.1f} s, {status['VmHWM'].split()[0]} KiB at most", file=sys.stderr)
"""


def rows():
    """Time and memory of the streaming renderers, by the number of rows."""
    path = Path(__file__).parents[1] / "data" / "linux-6.1.pse"
    for renderer, numbers in (("jsonlines", (10_000, 1_000_000)), ("rich", (10_000, 100_000))):
        for number in numbers:
            command = [sys.executable, "-c", _ROWS, str(path), renderer, str(number)]
            run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
            print(f"{renderer:10} {number:9,} rows: {run.stderr.strip()}", flush=True)


def main():
    rows()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "plain").mkdir()
        (directory / "recorded").mkdir()
        plain = Lab(directory / "plain")
        plain_ms = work(plain, recorded=False)
        plain.writer.close()
        lab = Lab(directory / "recorded")
        recorded_ms = work(lab, recorded=True)
        lab.writer.close()
        count, size = len(lab.live), lab.path.stat().st_size
        print(f"a step, median: {plain_ms:.3f} ms, recorded {recorded_ms:.3f} ms")
        print(f"{count} events in {size} bytes; waited for the disk {lab.writer.waited_ns / 1e6:.1f} ms")
        with open_recording(lab.path) as recording:
            began = time.perf_counter()
            assert [one.event for one in recording.events()] == lab.live
            print(f"read as recorded: {time.perf_counter() - began:.3f} s")
            began = time.perf_counter()
            assert [event for _, event in Replay(recording).events()] == lab.live
            print(f"derived again:    {time.perf_counter() - began:.3f} s")
        pack = Path(__file__).parents[2] / "volplugins"
        vol = Path(sys.executable).with_name("vol")
        if pack.is_dir() and vol.exists():
            began = time.perf_counter()
            command = [str(vol), "-q", "-p", str(pack), "-f", str(lab.path), "linux.pse"]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            print(
                f"vol linux.pse:    {time.perf_counter() - began:.3f} s, {len(run.stdout.splitlines())} lines"
            )


if __name__ == "__main__":
    run_command(main)
