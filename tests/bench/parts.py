"""What of the cost of plugin mode is due to what: in one guest, over the same generated code.

    python -m tests.bench.parts [--guests N] [--runs N]

Two QEMUs never generate quite the same code, and it is not the same after an attach; so what is compared here
never detaches.  It only changes what is armed, and what it does at a trap:

looking   nothing armed, but it looks for a trap all the time, as it does after two in quick succession
traps     every trap resumed as soon as it is seen, nothing read
watching  every trap read, and its events printed to nowhere

Printed are ratios to `off`, nothing armed and asleep, of 200 fork + exec: the median of the guests, each by
the medians of its runs, in an order that changes, with the 95 % confidence interval of that median; and how
long vCPUs waited for us, by process.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from live.adapters.qemu.plugin.source import PluginSource
from live.core.traps import TrapRequest
from live.session import Session
from live.stepper import Stepper
from tests.accuracy.run import trappable
from tests.bench.overhead import WARM, WORKLOADS, interval, once, progress
from tests.guest.spec import GuestSpec

COMMAND = "200 fork + exec"
PROCESSES = 201
"""The shell, too."""
PARTS = ("off", "looking", "traps", "watching")
Runs = dict[str, list[tuple[float, float, float]]]
"""By part: (wall seconds, CPU seconds of QEMU, us waited a process) of each run."""


def reader(target: str) -> None:
    """The watcher's process: takes the name of a part, answers with how long vCPUs waited since, in ns."""
    from live.cli import _hurry
    from live.render import JsonRenderer

    with Session(target) as session, open(os.devnull, "w") as nowhere:
        stepper = Stepper(session.kernel, session.processes)
        source = session.choose("plugin").source
        assert isinstance(source, PluginSource)
        request = session.request(source)
        armed = replace(request, fences=stepper.points.fences)
        renderer = JsonRenderer(nowhere, session.system, host=session.name, mode="plugin")
        source.arm(armed)  # now, so that no part has to have code generated anew
        _hurry()
        stepper.look(0, "attach")
        part, before = "off", 0
        while True:
            if part == "looking":
                for _ in range(2):
                    source.lookout.trap(time.monotonic_ns())
            trap = source.wait(0 if part == "looking" else 0.02)
            if trap is not None:
                events = stepper.trap(trap, 0, 0) if part == "watching" else []
                source.resume(trap)
                for event in events:
                    renderer.show(event)
            elif select.select([sys.stdin], [], [], 0)[0]:
                part = sys.stdin.readline().strip()
                if not part:
                    break
                source.arm(armed if part in ("traps", "watching") else TrapRequest())
                if part == "watching":
                    stepper.look(0, "resync")
                waited = source.counters.held_ns
                print(waited - before, flush=True)
                before = waited
        source.close()


def one_guest(runs: int) -> Runs:
    """Boot one, and run each part so many times."""
    results: Runs = {part: [] for part in PARTS}
    command = [sys.executable, "-m", "tests.bench.parts", "reader"]
    with (
        trappable(GuestSpec()) as guest,
        subprocess.Popen(
            [*command, str(guest.monitor)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def change(part: str) -> int:
            print(part, file=process.stdin, flush=True)
            assert process.stdout is not None
            return int(process.stdout.readline())

        change("traps")
        for _ in range(WARM):
            once(guest, WORKLOADS[COMMAND])
        for _ in range(runs):
            for part in random.sample(PARTS, len(PARTS)):
                change(part)
                time.sleep(0.02)
                wall, cpu = once(guest, WORKLOADS[COMMAND])
                results[part].append((wall, cpu, change("off") / 1000 / PROCESSES))
        process.stdin.close()
        process.wait()
    return results


def middle(guest: Runs, part: str, at: int) -> float:
    """The median of one column."""
    return statistics.median(run[at] for run in guest[part])


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--guests", type=int, default=10)
    parser.add_argument("--runs", type=int, default=6, help="of each part in a guest")
    options = parser.parse_args(arguments or [])
    guests = []
    for number in range(options.guests):
        progress(f"guest {number + 1} of {options.guests}")
        guests.append(one_guest(options.runs))
    print(f"{'part':10} {'wall ratio':>19}  {'CPU ratio':>19}  us waited a process")
    for part in PARTS:
        ratios = [
            interval([middle(guest, part, at) / middle(guest, "off", at) for guest in guests])
            for at in (0, 1)
        ]
        waited = statistics.median(middle(guest, part, 2) for guest in guests)
        print(f"{part:10} {'  '.join(ratios)}  {waited:19.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["reader"]:
        reader(sys.argv[2])
    else:
        main(sys.argv[1:])
