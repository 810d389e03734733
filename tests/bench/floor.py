"""What QEMU itself takes for plugins: no plugin that traps can cost the guest less than an empty one.

    python -m tests.bench.floor [--rounds N] [--runs N]

Whoever wants to trap must be told of each block that QEMU translates.  While anybody is, QEMU has every
memory access in generated code store its value for plugins, too (accel/tcg: `plugin_mem_value_low`, since
9.2; the plugin API cannot turn it off for a block).  Five QEMUs go on from one saved guest and run the same
in turn, while the others stand:

plain      no plugin
silent     a plugin that asks for nothing
empty      a plugin that asks to be told of each translated block, and does nothing then
pse        ours, that nobody has read yet: it has asked for nothing
read       ours, after `pse watch` has come and gone: nothing is trapped, but all of QEMU's code was made
           while it served plugins

Printed are ratios to plain, of wall time: the median of the rounds, each by the fastest quarter of its runs,
with the 95 % confidence interval of that median.  Each round has another guest, with another KASLR.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from live.hypervisors.qemu.plugin import build
from live.watch.session import Session
from tests.bench.overhead import WARM, WORKLOADS, fastest_quarter, interval, once, progress
from tests.guest.command import run_command
from tests.guest.guest import Guest
from tests.guest.spec import GuestSpec

SOURCE = """
#include "abi.h"
__attribute__((visibility("default"))) int qemu_plugin_version = 4;
static void translated(uint64_t id, void *tb) { (void)id; (void)tb; }
__attribute__((visibility("default")))
int qemu_plugin_install(uint64_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info; (void)argc; (void)argv;
    if (ASK)
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
"""
COMMANDS = {
    "1 000 000 system calls": "/programs/syscalls 1000000",
    "200 fork + exec": WORKLOADS["200 fork + exec"],
}
"""Ten times the calls of the table of `tests.bench.overhead`, which are over in 50 ms."""


def compiled(directory: Path, *, ask: bool) -> str:
    """``-plugin`` for the plugin that asks, or does not ask, and does nothing."""
    compiler = build.compiler()
    if compiler is None:
        raise RuntimeError("there is no C compiler; install gcc")
    source, result = directory / "empty.c", directory / f"empty-{ask:d}.so"
    source.write_text(SOURCE)
    command = [compiler, *build.FLAGS, f"-DASK={ask:d}", "-I", str(Path(build.__file__).parent)]
    subprocess.run([*command, str(source), "-o", str(result)], check=True)
    return f"file={result}"


def one_round(specs: dict[str, GuestSpec], state: Path, runs: int) -> dict[tuple[str, str], float]:
    """By plugin and workload: the ratio to plain."""
    with Guest(specs["plain"]) as guest:
        guest.save(state)
    ratios = {}
    with ExitStack() as stack:
        guests = {
            name: stack.enter_context(Guest(replace(spec, state=state))) for name, spec in specs.items()
        }
        with Session(str(guests["read"].monitor)) as session:
            source = session.choose("plugin").source
            assert source is not None
            source.arm(session.request(source))
            source.close()
        for guest in guests.values():
            guest.stop()
        for workload, command in COMMANDS.items():
            times: dict[str, list[float]] = {name: [] for name in guests}
            for number in range(-WARM, runs):
                for name in random.sample(list(guests), len(guests)):
                    guests[name].cont()
                    seconds = once(guests[name], command)[0]
                    guests[name].stop()
                    if number >= 0:
                        times[name].append(seconds)
            for name, taken in times.items():
                ratios[name, workload] = fastest_quarter(taken) / fastest_quarter(times["plain"])
    return ratios


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=12, help="of each workload in a round")
    options = parser.parse_args(arguments or [])
    rounds = []
    with tempfile.TemporaryDirectory(prefix="pse-bench-") as name:
        directory, plain = Path(name), GuestSpec()
        specs = {
            "plain": plain,
            "silent": replace(plain, plugins=(compiled(directory, ask=False),)),
            "empty": replace(plain, plugins=(compiled(directory, ask=True),)),
            "pse": replace(plain, plugins=(build.argument(directory / "pse"),)),
            "read": replace(plain, plugins=(build.argument(directory / "read"),)),
        }
        for number in range(options.rounds):
            progress(f"round {number + 1} of {options.rounds}")
            rounds.append(one_round(specs, directory / "state", options.runs))
    print(f"{'plugin':10} {'  '.join(f'{workload:22}' for workload in COMMANDS)}")
    for plugin in specs:
        columns = (interval([one[plugin, workload] for one in rounds]) for workload in COMMANDS)
        print(f"{plugin:10} {'  '.join(f'{column:22}' for column in columns)}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
