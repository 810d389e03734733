"""What watching costs the guest: five workloads, plain QEMU against each mode, alternating in one run.

    python -m tests.bench.overhead [--rounds N] [--cpu MODEL] [--modes NAME,NAME] [--workloads NAME,NAME]

Ratios to plain QEMU: wall time, median over the rounds with the smallest and the largest; and the least wall
and CPU time (of the QEMU process) in any round against plain QEMU's least, which other load on the machine
disturbs less.  In a round the best of a few runs counts, for plain QEMU right before the watched one.  Every
command has been run once before it is timed, as attaching empties QEMU's translation cache.
The modes `poll`, `plugin` and `gdbstub` are `pse watch --json`, with every process event on; the others are
what else the trap sources offer, with a reader that looks at guest memory for 100 us at each held trap.

"... bare" is the worst case: a program that only forks, and one that makes one system call after exec.

The column PANDA is quoted from measurements on another day and machine, as ratios to its own plain QEMU: with
osi + syscalls2, 13.7 / 3.6-3.9 / 1.7-3.2 / 4.3 / 1.5 s; plain 4.5 / 1.35 / 0.20 / 1.7 / 0.43 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from live.adapters.qemu import attach
from live.adapters.qemu.modes import choose
from live.adapters.qemu.plugin import build
from live.core.memory import GuestVirtual
from live.core.traps import Action, TrapRequest
from tests.guest.guest import Guest
from tests.guest.spec import GuestSpec
from tests.watch import PSE, environment

BOOT = "boot"
WORKLOADS = {
    "dd | md5sum": "dd if=/dev/zero bs=64k count=800 2>/dev/null | md5sum >/dev/null",
    "100 000 system calls": "/programs/syscalls 100000",
    "200 fork + exec": "for i in $(seq 200); do /bin/true; done",
    "... bare": "/programs/fork-exec 200",
    "shell loop": "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
}
PANDA = {
    BOOT: "3.0",
    "dd | md5sum": "2.7-2.9",
    "100 000 system calls": "8.5-16",
    "200 fork + exec": "2.5",
    "... bare": "-",
    "shell loop": "3.5",
}
RATED = "vfs_write"
PROCESS_CALLS = "56,57,58,59,60,231,322,435"
MODES = {
    "poll": "pse watch --mode poll",
    "plugin idle": "plugin loaded, nobody reads",
    "plugin": "pse watch --mode plugin",
    "plugin held": "pse watch --mode plugin, with a callback: no fences, every trap held",
    "plugin calls": "process system calls by number, held",
    "plugin asid": "every asid change recorded",
    "gdbstub": "pse watch --mode gdbstub",
}
WATCHES = ("poll", "plugin", "gdbstub")
REPEATS = 3


def look(memory: memoryview | None, until: int) -> None:
    """Read guest memory until a moment of the monotonic clock in ns."""
    at = 0x100000
    while time.monotonic_ns() < until:
        if memory is not None:
            bytes(memory[at : at + 4096])


def held(pid: str) -> None:
    """What `pse watch --json` does, but with a callback, for which every vCPU stands."""
    import select

    from live.cli import _hurry
    from live.monitor import Monitor
    from live.render import JsonRenderer
    from live.session import Session

    with Session(pid) as session, open(os.devnull, "w") as nowhere:
        monitor = Monitor(session, mode="plugin")
        monitor.on_process_start(lambda process: None)
        _hurry()
        renderer = JsonRenderer(nowhere, session.system, host=session.name, mode="plugin")
        batches = monitor.batches()
        for number, batch in enumerate(batches):
            for event in batch:
                renderer.show(event)
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
    with attach(pid) as guest:
        flat = guest.memory.flat
        source = choose(guest, "plugin" if mode.startswith("plugin") else "gdbstub").source
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
    if mode == "plugin idle":
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


def timed(guest: Guest, command: str) -> tuple[float, float]:
    """The best of a few, after a run that lets QEMU translate everything."""
    guest.run(command, timeout=600)
    return min(once(guest, command) for _ in range(REPEATS))


def spread(values: Sequence[float]) -> str:
    """Median [smallest-largest]."""
    return f"{statistics.median(values):5.2f} [{min(values):.2f}-{max(values):.2f}]"


def measure(plain: Guest, watched: Guest, rounds: int, modes: list[str], names: list[str]) -> None:
    """The workloads that run in a guest that is up."""
    addresses = addresses_of(watched)
    titles = f"{'wall ratio':>18} {'least wall':>10} {'CPU':>5}  traps  late   PANDA (quoted)"
    print(f"\n{'workload':22} {'mode':13} {titles}")
    for name in names:
        command = WORKLOADS[name]
        results: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        seen: dict[str, Watch] = {}
        for _ in range(rounds):
            for mode in modes:
                base = timed(plain, command)
                results["plain"].append((1.0, *base))
                with watching(watched, mode, addresses) as watch:
                    got = timed(watched, command)
                seen[mode] = watch
                results[mode].append((got[0] / base[0], *got))
        _, walls, cpus = zip(*results["plain"], strict=True)
        print(f"{name:22} {'plain':13} {statistics.median(walls):8.3f} s {min(walls):18.3f} s")
        for mode in modes:
            ratios, wall, cpu = zip(*results[mode], strict=True)
            least = f"{min(wall) / min(walls):10.2f} {min(cpu) / min(cpus):5.2f}"
            note = f"{seen[mode].traps:6} {seen[mode].late:5}   {PANDA[name]}"
            print(f"{'':22} {mode:13} {spread(ratios):>18} {least} {note}", flush=True)


def measure_boot(cpu_model: str, argument: str, rounds: int) -> None:
    """Boot: nothing can be attached yet, so only the loaded plugin counts."""
    walls, cpus = [], []
    for _ in range(rounds):
        with Guest(GuestSpec(cpu_model=cpu_model)) as guest:
            base = (guest.boot_seconds, cpu_seconds(guest.pid))
        with Guest(GuestSpec(cpu_model=cpu_model, plugins=(argument,))) as guest:
            walls.append(guest.boot_seconds / base[0])
            cpus.append((base[1], cpu_seconds(guest.pid)))
    least = min(after for _, after in cpus) / min(before for before, _ in cpus)
    print(f"{BOOT:22} {'plugin idle':13} {spread(walls):>18} {'':10} {least:5.2f} {'':12}   {PANDA[BOOT]}")


def measure_rate(watched: Guest) -> None:
    """What one trap costs when the reader resumes at once, and how many there can be in a second."""
    addresses = addresses_of(watched)
    print(f"\n{'mode':13} {'traps':>6} {'us a trap':>10} {'a second':>9}   (vfs_write trapped; dd bs=1)")
    for mode, count in (("plugin", 20000), ("gdbstub", 100)):
        command = f"dd if=/dev/zero of=/dev/null bs=1 count={count} 2>/dev/null"
        without = timed(watched, command)[0]
        with watching(watched, f"{mode}:rate", addresses) as watch:
            wall = once(watched, command)[0]
        each = (wall - without) / watch.traps * 1e6
        print(f"{mode:13} {watch.traps:6} {each:10.1f} {watch.traps / wall:9.0f}")


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--modes", default=",".join(MODES), help="which, separated by commas")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="which, separated by commas")
    parser.add_argument("--cpu", default="qemu64", help="Skylake-Client has page-table isolation on")
    options = parser.parse_args(arguments or [])
    for mode, text in MODES.items():
        print(f"{mode:13} {text}")
    with tempfile.TemporaryDirectory(prefix="pse-bench-") as directory:
        argument = build.argument(Path(directory) / "plugin")
        with (
            Guest(GuestSpec(cpu_model=options.cpu)) as plain,
            Guest(GuestSpec(cpu_model=options.cpu, plugins=(argument,))) as watched,
        ):
            measure(plain, watched, options.rounds, options.modes.split(","), options.workloads.split(","))
            measure_rate(watched)
        measure_boot(options.cpu, argument, min(options.rounds, 3))


if __name__ == "__main__":
    if sys.argv[1:2] == ["reader"]:
        reader(*sys.argv[2:5])
    else:
        main(sys.argv[1:])
