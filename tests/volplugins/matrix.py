"""``python -m tests.volplugins.matrix``: kernels x RAM x LA57 x KASLR, and what stock plugins make of each.

Boots every combination, takes its memory (1 GiB with KASLR as an ELF core, the others as
the RAM file, which at 4 GiB has a hole), and runs the
stock plugins on it with no symbol table from the user.  A cell is the number of rows, marked ``!`` where it
is not what the guest itself says, with the exit status if that is not 0.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.guest import KERNELS, Guest, GuestSpec
from tests.guest.command import run_command
from tests.volplugins import scene
from tests.volplugins.scene import HISTORY, LISTENING, Run, Truth

PACK = scene.packs()[0]


_PASSING = ("kworker", "cryptomgr_test")
"""Kernel threads that come and go by themselves."""


def _pslist(run: Run, truth: Truth) -> bool:
    """Every process and kernel thread, none else, with its name; kernel workers come and go as they like."""
    seen = {row["PID"]: row["COMM"].partition("/")[0] for row in run.rows}
    asked = {pid: comm.partition("/")[0] for pid, comm in truth.users.items()} | truth.threads
    return lasting(seen) == lasting(asked)


def lasting(names: dict[int, str]) -> dict[int, str]:
    """Those that are there before and after the memory is taken: these threads need not be."""
    return {pid: name for pid, name in names.items() if name not in _PASSING}


def _pse(run: Run, truth: Truth) -> bool:
    running = {row["PID"]: row["COMM"] for row in run.rows if row["EVENT"] == "start"}
    unread = [row for row in run.rows if row["EVENT"] == "start" and not row["ARGS"]]
    # Which of the dead are still there is up to what the allocator did since; none of them may be alive.
    dead = {row["PID"] for row in run.rows if row["EVENT"] == "end"}
    return running == truth.users and not unread and not dead & set(truth.users)


def _psaux(run: Run, truth: Truth) -> bool:
    args = {row["PID"]: row["ARGS"] for row in run.rows}
    expected = set(truth.users) | set(lasting(truth.threads))
    return expected <= set(args) and "sleep 4321" in args.values()


def _maps(run: Run, truth: Truth) -> bool:
    return {row["PID"] for row in run.rows} == set(truth.users)


def _sockets(run: Run, truth: Truth) -> bool:
    return any(row.get("Source Port") == str(LISTENING) and row.get("State") == "LISTEN" for row in run.rows)


def _bash(run: Run, truth: Truth) -> bool:
    return tuple(row["Command"] for row in run.rows) == HISTORY


def _envars(run: Run, truth: Truth) -> bool:
    return ("SECRET", "treasure") in {(row.get("KEY"), row.get("VALUE")) for row in run.rows}


def _syscalls(run: Run, truth: Truth) -> bool:
    # Stock counts the table up to the next symbol, and so the zeros that align it.
    unknown = [row for row in run.rows if row["Handler Symbol"] == "UNKNOWN" and row["Handler Address"]]
    return len(run.rows) > 300 and not unknown


CHECKS: dict[str, Callable[[Run, Truth], bool]] = {
    "linux.pslist": _pslist,
    "linux.pse": _pse,
    "linux.psaux": _psaux,
    "linux.lsof": lambda run, truth: any("/dev/" in str(row.get("Path")) for row in run.rows),
    "linux.proc.Maps": _maps,
    "linux.bash": _bash,
    "linux.lsmod": lambda run, truth: len(run.rows) == truth.modules,
    "linux.sockstat": _sockets,
    "linux.envars": _envars,
    "linux.check_syscall": _syscalls,
    # kthreadd itself was not made by kthreadd, and has no `struct kthread`.
    "linux.kthreads": lambda run, truth: (
        {row["TID"] for row in run.rows} >= set(lasting(truth.threads)) - {2}
    ),
}


def main() -> int:
    """Print the table as it grows; exit status 1 if any cell is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.volplugins.matrix", description=__doc__)
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="only these")
    parser.add_argument("--memory", action="append", type=int, help="MiB (default: 1024 and 4096)")
    parser.add_argument("--cpu", action="append", help="CPU model (default: qemu64, and max with LA57)")
    parser.add_argument("--kaslr", action="append", choices=("on", "off"), help="(default: both)")
    parser.add_argument("--keep", type=Path, help="keep the images in this directory")
    options = parser.parse_args()
    names = [name.removeprefix("linux.") for name in CHECKS]
    print(
        f"{'kernel':7} {'MiB':>5} {'cpu':6} {'kaslr':5}",
        *(f"{name:>13}" for name in names),
        " first s  then s",
    )
    wrong = 0
    combinations = itertools.product(
        options.kernel or KERNELS,
        options.memory or (1024, 4096),
        options.cpu or ("qemu64", "max"),
        options.kaslr or ("on", "off"),
    )
    for kernel, memory, cpu, kaslr in combinations:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            spec = GuestSpec(kernel=kernel, memory=memory, cpu_model=cpu, kaslr=kaslr == "on")
            image, truth = _take(spec, options.keep or directory)
            cells, seconds = [], []
            for plugin, check in CHECKS.items():
                run = scene.vol(
                    "-f", str(image), plugin, cwd=directory, symbols=directory / "cache", pack=PACK
                )
                right = run.status == 0 and check(run, truth)
                wrong += not right
                cells.append(
                    f"{len(run.rows)}{'' if right else '!'}{f' ({run.status})' if run.status else ''}"
                )
                seconds.append(run.seconds)
                if not right:
                    print(f"{plugin}: {run.errors.strip()[-1500:]}", file=sys.stderr)
            again = scene.vol(
                "-f", str(image), "linux.pslist", cwd=directory, symbols=directory / "cache", pack=PACK
            )
        print(
            f"{kernel:7} {memory:5} {cpu:6} {kaslr:5}",
            *(f"{cell:>13}" for cell in cells),
            f"{seconds[0]:8.1f} {again.seconds:7.1f}",
            flush=True,
        )
    return wrong > 0


def _take(spec: GuestSpec, directory: Path) -> tuple[Path, Truth]:
    with Guest(spec) as guest:
        scene.prepare(guest)
        truth = scene.truth(guest)
        guest.stop()
        stem = f"{spec.kernel}-{spec.memory}-{spec.cpu_model}-{'kaslr' if spec.kaslr else 'nokaslr'}"
        if spec.memory > 2048 or not spec.kaslr:
            return scene.copy_ram(guest, directory / f"{stem}.ram"), truth
        return guest.dump_elf(directory / f"{stem}.elf"), truth


if __name__ == "__main__":
    run_command(main)
