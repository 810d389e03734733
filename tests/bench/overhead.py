"""What watching costs the guest: five workloads, plain QEMU against each mode, alternating in one run.

    python -m tests.bench.overhead [--rounds N] [--pairs N] [--warm N] [--cpu MODEL] [--modes NAME,...] [...]
    python -m tests.bench.overhead --noise [...]

Two guests are up, and only one of them is watched.  A workload runs in both, one after the other, and the
two runs make a pair; which goes first changes each time, and the other guest stands meanwhile.  Every round
has two new QEMUs, which go on from the saved state of one guest, so that nothing else differs; the next round
has another one's, with another KASLR.  Printed are ratios, watched to plain, of wall time and of CPU time (of
QEMU's process): the median of the rounds, each by the median of its pairs, with the 95 % confidence interval
of that median; and the smallest and the largest of the rounds.  `fastest` is the same of wall time, each
round by the fastest quarter of the runs on either side: neighbours only ever make a run slower.
--noise compares plain QEMU with plain QEMU.  On a machine with neighbours, twenty pairs a round take out
most of what it shows, and two hardly any.
Every workload has run --warm times in both before anybody attaches, as one attaches to a guest that has been
running.  The first reader of the plugin has QEMU make all code anew, and the next runs take longer for that,
less and less; so a command has run --warm times once more before it is timed.
The modes `poll`, `plugin` and `gdbstub` are `pse watch --json`, with every process event on; the others are
what else the trap sources offer, with a reader that looks at guest memory for 100 us at each held trap.

"... bare" is the worst case: a program that only forks, and one that makes one system call after exec.

The column PANDA is quoted from measurements on another day and machine, as ratios to its own plain QEMU: with
osi + syscalls2, 13.7 / 3.6-3.9 / 1.7-3.2 / 4.3 / 1.5 s; plain 4.5 / 1.35 / 0.20 / 1.7 / 0.43 s.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from live.arch.x86_64 import X86_64
from live.core.memory import GuestVirtual
from live.core.traps import Action, CodeHit, TrapRequest
from live.hypervisors import registry
from live.hypervisors.qemu.plugin import build
from live.watch.modes import choose
from tests.guest.command import run_command
from tests.guest.guest import Guest
from tests.guest.spec import GuestSpec
from tests.watch import PSE, environment

BOOT = "boot"
WORKLOADS = {
    "dd | md5sum": "dd if=/dev/zero bs=64k count=800 2>/dev/null | md5sum >/dev/null",
    "100 000 system calls": "/programs/syscalls 100000",
    "... by a library": "/programs/getppid 100000",
    "200 fork + exec": "for i in $(seq 200); do /bin/true; done",
    "... bare": "/programs/fork-exec 200",
    "idle": "sleep 1",
    "shell loop": "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
}
PANDA = {
    BOOT: "3.0",
    "dd | md5sum": "2.7-2.9",
    "100 000 system calls": "8.5-16",
    "... by a library": "-",
    "200 fork + exec": "2.5",
    "... bare": "-",
    "idle": "-",
    "shell loop": "3.5",
}
RATED = "vfs_write"
WARM = 3
"""Untimed runs before the timed ones: by then QEMU has generated what it needs."""
PROCESS_CALLS = "56,57,58,59,60,231,322,435"
MODES = {
    "poll": "pse watch --mode poll",
    "plugin idle": "plugin loaded, nobody has read",
    "plugin": "pse watch --mode plugin",
    "plugin held": "pse watch --mode plugin, with a callback: no fences, every trap held",
    "plugin calls": "process system calls by number, held",
    "plugin asid": "every asid change recorded",
    "asid": "pse watch --mode asid",
    "diff": "pse watch --mode diff",
    "gdbstub": "pse watch --mode gdbstub",
}
NOISE = "plain again"
UNWATCHED = (NOISE, "plugin idle")
WATCHES = ("poll", "plugin", "asid", "diff", "gdbstub")


def look(memory: memoryview | None, until: int) -> None:
    """Read guest memory until a moment of the monotonic clock in ns."""
    at = 0x100000
    while time.monotonic_ns() < until:
        if memory is not None:
            bytes(memory[at : at + 4096])


def held(pid: str) -> None:
    """What `pse watch --json` does, but with a callback, for which every vCPU stands."""
    import select

    from live.cli.watch import hurry
    from live.output.contract import Context
    from live.output.ecs import EcsLines
    from live.watch.monitor import Monitor
    from live.watch.session import Session

    with Session(pid) as session, open(os.devnull, "w") as nowhere:
        monitor = Monitor(session, mode="plugin")
        monitor.on_process_start(lambda process: None)
        hurry()
        sink = EcsLines(Context(out=nowhere, system=session.system, host=session.name, mode="plugin"))
        batches = monitor.batches()
        for number, batch in enumerate(batches):
            for event in batch:
                sink.show(event)
            if not number:
                print("ready", flush=True)
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        batches.close()
        print(monitor.cost.traps, monitor.cost.late, flush=True)


def reader(pid: str, mode: str, code: str) -> None:
    """The watcher's process: says that it is ready, then reads until its stdin closes."""
    import select

    if mode == "plugin held":
        held(pid)
        return
    with contextlib.closing(registry.attach(pid)) as guest:
        flat = guest.memory.flat
        wanted = "plugin" if mode.startswith("plugin") else "gdbstub"
        source = choose(guest, X86_64, wanted, frozenset({CodeHit})).source
        assert source is not None
        source.arm(
            {
                "plugin calls": TrapRequest(syscalls=frozenset(map(int, PROCESS_CALLS.split(",")))),
                "plugin asid": TrapRequest(asid_changes=Action.RECORD),
            }.get(mode, TrapRequest(code=frozenset({GuestVirtual(int(code))})))
        )
        print("ready", flush=True)
        traps = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            trap = source.wait(0.05)
            if trap is not None:
                traps += 1
                if trap.held and not mode.endswith(":rate"):
                    look(flat, time.monotonic_ns() + 100_000)
                source.resume(trap)
        print(traps, source.counters.hold_timeouts, flush=True)
        source.close()


@dataclass
class Watch:
    """What a reader reported: traps, and how many it was too late for."""

    traps: int = 0
    late: int = 0


@contextlib.contextmanager
def watching(guest: Guest, mode: str, addresses: dict[str, int]) -> Iterator[Watch]:
    """Somebody who watches in the mode, for the time of the block."""
    watch = Watch()
    if mode in UNWATCHED:
        yield watch
    elif mode in WATCHES:
        with _pse_watch(guest, mode, watch):
            yield watch
    else:
        with _reader(guest, mode, addresses, watch):
            yield watch


@contextlib.contextmanager
def _pse_watch(guest: Guest, mode: str, watch: Watch) -> Iterator[None]:
    with (
        tempfile.NamedTemporaryFile() as events,
        subprocess.Popen(
            [*PSE, "watch", "--json", "--mode", mode, str(guest.monitor)],
            stdout=events,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as process,
    ):
        while not os.path.getsize(events.name):
            if process.poll() is not None:
                raise RuntimeError(f"pse watch --mode {mode} did not start")
            time.sleep(0.02)
        time.sleep(0.3)
        yield
        if process.poll() is not None:
            assert process.stderr is not None
            raise RuntimeError(f"pse watch --mode {mode} ended before the workload: {process.stderr.read()}")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        summary = process.stderr.read()
    for name, pattern in (("traps", r"(\d+) traps,"), ("late", r"(\d+) traps taken too late")):
        found = re.search(pattern, summary)
        setattr(watch, name, int(found[1]) if found else 0)


@contextlib.contextmanager
def _reader(guest: Guest, mode: str, addresses: dict[str, int], watch: Watch) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.bench.overhead", "reader", str(guest.pid), mode]
    command.append(str(addresses.get(RATED, 0)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the reader of {mode} did not start")
        yield
        process.stdin.close()
        watch.traps, watch.late = map(int, process.stdout.readline().split())


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads (proc(5), schedstat)."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total / 1e9


def addresses_of(guest: Guest) -> dict[str, int]:
    """Where the guest has what we trap."""
    pattern = f" [tT] {RATED}$"
    lines = guest.run(["grep", "-E", pattern, "/proc/kallsyms"]).output.splitlines()
    return {line.split()[2]: int(line.split()[0], 16) for line in lines}


def once(guest: Guest, command: str) -> tuple[float, float]:
    """(wall, CPU of QEMU) seconds of a command in the guest."""
    cpu, wall = cpu_seconds(guest.pid), time.monotonic()
    guest.run(command, timeout=600)
    return time.monotonic() - wall, cpu_seconds(guest.pid) - cpu


@dataclass
class Pairs:
    """What one mode did to one workload: (wall, CPU of QEMU) seconds of plain and watched runs, by round."""

    rounds: list[list[tuple[float, float, float, float]]] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)

    def ratios(self, at: int) -> list[list[float]]:
        """By round; ``at`` 0 for wall, 1 for CPU time."""
        return [[pair[2 + at] / pair[at] for pair in pairs] for pairs in self.rounds]

    def fastest(self) -> list[float]:
        """By round: the ratio of the wall times of the fastest quarter of the runs on either side."""
        return [
            fastest_quarter([pair[2] for pair in pairs]) / fastest_quarter([pair[0] for pair in pairs])
            for pairs in self.rounds
        ]

    def row(self, warm: int) -> str:
        """The columns of the table."""
        walls, cpus = ([statistics.median(one) for one in self.ratios(at)] for at in (0, 1))
        runs = sum(map(len, self.rounds))
        traps = self.watch.traps // (len(self.rounds[-1]) + warm)
        counts = f"{runs:5} {traps:6} {self.watch.late:5}"
        spread = f"{min(walls):5.2f}-{max(walls):.2f}"
        return f"{interval(walls)} {spread}  {interval(self.fastest())}  {interval(cpus)} {counts}"


Results = dict[tuple[str, str], Pairs]
"""By workload and mode."""


def interval(values: Sequence[float]) -> str:
    """Median [its 95 % confidence interval, by order statistics: no distribution is assumed]."""
    ordered = sorted(values)
    half = 0.98 * math.sqrt(len(ordered))
    low = max(math.floor(len(ordered) / 2 - half), 0)
    high = min(math.ceil(len(ordered) / 2 + half), len(ordered) - 1)
    return f"{statistics.median(ordered):5.3f} [{ordered[low]:.3f}-{ordered[high]:.3f}]"


def fastest_quarter(values: Sequence[float]) -> float:
    """The mean of the smallest quarter of the values."""
    return statistics.mean(sorted(values)[: max(len(values) // 4, 1)])


def paired(
    plain: Guest, watched: Guest, command: str, count: int, warm: int
) -> list[tuple[float, float, float, float]]:
    """Run it in both, ``count`` times each, while the other one stands."""
    pairs = []
    for number in range(-warm, count):
        times = {}
        for guest, other in ((plain, watched), (watched, plain))[:: -1 if number % 2 else 1]:
            other.stop()
            times[guest] = once(guest, command)
            other.cont()
        if number >= 0:
            pairs.append((*times[plain], *times[watched]))
    return pairs


def measure(plain: Guest, watched: Guest, results: Results, count: int, warm: int) -> None:
    """One round of the workloads that run in a guest that is up."""
    addresses = addresses_of(watched)
    for name in dict.fromkeys(name for name, _ in results):
        paired(plain, watched, WORKLOADS[name], 0, warm)
    for (name, mode), pairs in sorted(results.items(), key=lambda item: [NOISE, *MODES].index(item[0][1])):
        with watching(watched, mode, addresses) as pairs.watch:
            pairs.rounds.append(paired(plain, watched, WORKLOADS[name], count, warm))


def booted(guest: Guest) -> tuple[float, float]:
    """(wall, CPU of QEMU) seconds that the boot took."""
    return guest.boot_seconds, cpu_seconds(guest.pid)


def measure_rate(watched: Guest) -> None:
    """What one trap costs when the reader resumes at once, and how many there can be in a second."""
    addresses = addresses_of(watched)
    print(f"\n{'mode':13} {'traps':>6} {'us a trap':>10} {'a second':>9}   (vfs_write trapped; dd bs=1)")
    for mode, count in (("plugin", 20000), ("gdbstub", 100)):
        command = f"dd if=/dev/zero of=/dev/null bs=1 count={count} 2>/dev/null"
        for _ in range(WARM):
            once(watched, command)
        without = min(once(watched, command)[0] for _ in range(3))
        with watching(watched, f"{mode}:rate", addresses) as watch:
            wall = once(watched, command)[0]
        each = (wall - without) / watch.traps * 1e6
        print(f"{mode:13} {watch.traps:6} {each:10.1f} {watch.traps / wall:9.0f}")


def progress(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def show(results: Results, warm: int) -> None:
    """Print the table."""
    ratios = f"{'wall ratio':>19} {'rounds':>10}  {'fastest':>19}  {'CPU ratio':>19}"
    print(f"\n{'workload':22} {'mode':13} {ratios} {'pairs':>5} {'traps':>6}  late   PANDA (quoted)")
    last = ""
    for (name, mode), pairs in results.items():
        if name != last:
            seconds = [pair[0] for one in pairs.rounds for pair in one]
            print(f"{name:22} {'plain':13} {statistics.median(seconds):8.3f} s")
        print(f"{'':22} {mode:13} {pairs.row(warm)}   {PANDA[name]}")
        last = name


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=2, help="of each workload in a round")
    parser.add_argument("--warm", type=int, default=WARM, help="runs of each before it is timed")
    parser.add_argument("--modes", default=",".join(MODES), help="which, separated by commas")
    everything = ",".join((BOOT, *WORKLOADS))
    parser.add_argument("--workloads", default=everything, help="which, separated by commas")
    parser.add_argument("--cpu", default="qemu64", help="Skylake-Client has page-table isolation on")
    parser.add_argument("--noise", action="store_true", help="compare plain QEMU with itself")
    options = parser.parse_args(arguments or [])
    for mode, text in MODES.items():
        print(f"{mode:13} {text}")
    modes = [NOISE] if options.noise else options.modes.split(",")
    names = options.workloads.split(",")
    # Nothing can be attached to a guest that boots, so only the loaded plugin counts there.
    boots, results = Pairs(), {(name, mode): Pairs() for name in names if name != BOOT for mode in modes}
    with tempfile.TemporaryDirectory(prefix="pse-bench-") as directory:
        spec = GuestSpec(cpu_model=options.cpu)
        plugin = build.argument(Path(directory) / "plugin")
        loaded = spec if options.noise else replace(spec, plugins=(plugin,))
        if BOOT in names:
            for number in range(options.rounds):
                progress(f"boot {number + 1} of {options.rounds}")
                with Guest(spec) as plain, Guest(loaded) as watched:
                    boots.rounds.append([(*booted(plain), *booted(watched))])
        state = Path(directory) / "state"
        for number in range(options.rounds):
            progress(f"round {number + 1} of {options.rounds}")
            with Guest(spec) as plain:
                plain.save(state)
            with contextlib.ExitStack() as stack:
                # Which is started first changes, too: it may get the better memory.
                guests = [
                    stack.enter_context(Guest(replace(one, state=state)))
                    for one in (spec, loaded)[:: -1 if number % 2 else 1]
                ]
                plain, watched = guests[:: -1 if number % 2 else 1]
                measure(plain, watched, results, options.pairs, options.warm)
                if number + 1 == options.rounds and not options.noise:
                    measure_rate(watched)
    at_boot = NOISE if options.noise else "plugin idle"
    show({(BOOT, at_boot): boots, **results} if BOOT in names else results, options.warm)


if __name__ == "__main__":
    if sys.argv[1:2] == ["reader"]:
        reader(*sys.argv[2:5])
    else:
        run_command(main, sys.argv[1:])
