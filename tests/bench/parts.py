"""What of the cost of plugin mode is due to what: in one guest, over the same generated code.

    python -m tests.bench.parts [--guests N] [--runs N] [--company N] [--cpu MODEL]

Two QEMUs never generate quite the same code; so what is compared here is one guest, whose reader never
detaches.  It only changes what is armed, and what it does at a trap:

busy      nothing armed, but a process that has nothing to do with us computes meanwhile
traps     every trap resumed as soon as it is seen, nothing read
watching  every trap read, and its events printed to nowhere

Printed are ratios to `off`, nothing armed and asleep, of 200 fork + exec: the median of the guests, each by
the fastest quarter of its runs, in an order that changes, with the 95 % confidence interval of that median.
Neighbours only ever make a run slower, for seconds at a time, by more than what is asked for here.  Then how
long vCPUs waited for us, by process; how long (ms) it took us at most to be done with a trap; and what the
host's scheduler says of QEMU's busiest thread in a run: for how long it had to wait for a CPU, and how often
it was pushed aside.

With --company so many processes that have nothing to do with us compute in every part, `off`, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from live.core.traps import TrapRequest
from live.hypervisors.qemu.plugin.source import PluginSource
from live.watch.session import Session
from live.watch.stepper import Stepper
from tests.accuracy.run import trappable
from tests.bench.overhead import WARM, WORKLOADS, fastest_quarter, interval, once, progress
from tests.guest.command import run_command
from tests.guest.spec import GuestSpec

COMMAND = "200 fork + exec"
PROCESSES = 201
"""The shell, too."""
PARTS = ("off", "busy", "traps", "watching")


class Run(NamedTuple):
    """``wall`` and ``cpu`` (of QEMU) in seconds, ``waited`` in us a process, ``longest``, ``delay`` in ms."""

    wall: float
    cpu: float
    waited: float
    longest: float
    delay: float
    aside: int


Runs = dict[str, list[Run]]
"""By part."""


def reader(target: str) -> None:
    """The watcher's process: takes the name of a part, answers with how long vCPUs waited since, in ns.

    And with how long it took at most from a trap until we were done with it.
    """
    from live.cli.watch import hurry
    from live.output.contract import Context
    from live.output.ecs import EcsLines

    with Session(target) as session, open(os.devnull, "w") as nowhere:
        stepper = Stepper(session.os)
        source = session.choose("plugin").source
        assert isinstance(source, PluginSource)
        request = session.request(source)
        armed = replace(request, fences=session.os.points().fences)
        sink = EcsLines(Context(out=nowhere, system=session.system, host=session.name, mode="plugin"))
        source.arm(armed)  # now, so that no part has to have code generated anew
        hurry()
        stepper.snapshot(0, "attach")
        part, before, longest = "off", 0, 0
        while True:
            trap = source.wait(0.02)
            if trap is not None:
                events = stepper.trap(trap, 0, 0) if part == "watching" else []
                source.resume(trap)
                longest = max(longest, time.monotonic_ns() - trap.time_ns)
                for event in events:
                    sink.show(event)
            elif select.select([sys.stdin], [], [], 0)[0]:
                part = sys.stdin.readline().strip()
                if not part:
                    break
                source.arm(armed if part in ("traps", "watching") else TrapRequest())
                if part == "watching":
                    stepper.snapshot(0, "resync")
                waited = source.counters.held_ns
                print(waited - before, longest, flush=True)
                before, longest = waited, 0
        source.close()


def one_guest(runs: int, others: int, model: str) -> Runs:
    """Boot one, and run each part so many times, while ``others`` compute."""
    results: Runs = {part: [] for part in PARTS}
    command = [sys.executable, "-m", "tests.bench.parts", "reader"]
    with (
        trappable(GuestSpec(cpu_model=model)) as guest,
        subprocess.Popen(
            [*command, str(guest.monitor)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def change(part: str) -> tuple[int, int]:
            print(part, file=process.stdin, flush=True)
            assert process.stdout is not None
            waited, longest = process.stdout.readline().split()
            return int(waited), int(longest)

        change("traps")
        for _ in range(WARM):
            once(guest, WORKLOADS[COMMAND])
        for _ in range(runs):
            for part in random.sample(PARTS, len(PARTS)):
                change(part)
                with company(others + (part == "busy")):
                    time.sleep(0.1)
                    before = scheduled(guest.pid)
                    wall, cpu = once(guest, WORKLOADS[COMMAND])
                    delay, aside = scheduled(guest.pid)
                waited, longest = change("off")
                results[part].append(
                    Run(
                        wall,
                        cpu,
                        waited / 1000 / PROCESSES,
                        longest / 1e6,
                        (delay - before[0]) / 1e6,
                        aside - before[1],
                    )
                )
        process.stdin.close()
        process.wait()
    return results


@contextlib.contextmanager
def company(processes: int, on: set[int] | None = None) -> Iterator[None]:
    """Others that compute, on these CPUs of the host."""
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
            if on:
                os.sched_setaffinity(process.pid, on)
        yield


def scheduled(pid: int) -> tuple[int, int]:
    """(ns for which the busiest thread waited for a CPU, how often it was pushed aside) since it began."""
    threads = [thread for thread in Path(f"/proc/{pid}/task").iterdir() if thread.exists()]
    stats = {thread: list(map(int, (thread / "schedstat").read_text().split())) for thread in threads}
    busiest = max(stats, key=lambda thread: stats[thread][0])
    line = (busiest / "status").read_text().rpartition("nonvoluntary_ctxt_switches:")[2]
    return stats[busiest][1], int(line)


def fastest(guest: Runs, part: str, at: int) -> float:
    """Of one column, the fastest quarter."""
    return fastest_quarter([run[at] for run in guest[part]])


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--guests", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20, help="of each part in a guest")
    parser.add_argument("--company", type=int, default=0, help="processes that compute meanwhile")
    parser.add_argument("--cpu", default="qemu64", help="Skylake-Client has page-table isolation on")
    options = parser.parse_args(arguments or [])
    guests = []
    for number in range(options.guests):
        progress(f"guest {number + 1} of {options.guests}")
        guests.append(one_guest(options.runs, options.company, options.cpu))
    print(
        f"{'part':10} {'wall ratio':>19}  {'CPU ratio':>19}  us waited a process  ms longest  ms delay  aside"
    )
    for part in PARTS:
        ratios = [
            interval([fastest(guest, part, at) / fastest(guest, "off", at) for guest in guests])
            for at in (0, 1)
        ]
        waited, delay, aside = (
            statistics.median(run[at] for guest in guests for run in guest[part]) for at in (2, 4, 5)
        )
        longest = max(run.longest for guest in guests for run in guest[part])
        print(f"{part:10} {'  '.join(ratios)}  {waited:19.1f}  {longest:10.1f}  {delay:8.1f}  {aside:5.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["reader"]:
        reader(sys.argv[2])
    else:
        run_command(main, sys.argv[1:])
