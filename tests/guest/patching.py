"""``python -m tests.guest.patching``: a kernel that patches code which other vCPUs run may hang in QEMU.

There is no plugin and no watcher.  Trace events that the scheduler meets all the time are switched on and
off.  The kernel patches its code for that: it puts an int3 over an instruction, changes the rest of it, and
puts its first byte back (arch/x86/kernel/alternative.c, text_poke_bp).

What we take for the reason: QEMU gives up the code that it made of these bytes, and *then* stores.  A vCPU
that gets there between the two has code made of the bytes before the store, and that stays.  So it may run,
for ever, an int3 that is in no memory: the kernel sees that there is none, and has the instruction tried
again (kprobe_int3_handler).  In the scheduler, where interrupts are off, that is the end of a vCPU.  What is
printed shows as much: the bytes in memory where the vCPUs are, and that the guest goes on when QEMU's monitor
is told ``one-insn-per-tb on``, which has all code made anew.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter

from .command import run_command
from .errors import GuestTimeout
from .guest import Guest
from .spec import GuestSpec

_EVENTS = ("sched_switch", "sched_waking", "sched_wakeup")
_WORK = ["sh", "-c", "storm 2 3; fork-exec 30"]
_SWITCHES = 40


def _patch(guest: Guest) -> None:
    """So many times, beside three that make the scheduler busy; raises GuestTimeout if it hangs."""
    switches = "".join(f"echo {value} > {name}/enable; " for value in (1, 0) for name in _EVENTS)
    jobs = [guest.start(_WORK) for _ in range(3)]
    jobs.append(
        guest.start(f"cd /sys/kernel/tracing/events/sched; for i in $(seq {_SWITCHES}); do {switches} done")
    )
    for job in jobs:
        job.wait(60, check=False)


def _where(guest: Guest) -> str:
    """Where the vCPUs are most of the time, and the bytes in memory there."""
    found: Counter[str] = Counter()
    for _ in range(30):
        found.update(re.findall(r"RIP=([0-9a-f]{16})", guest.hmp("info registers -a")))
    return "\n".join(
        f"{times / found.total():4.0%}  {guest.hmp(f'x/5xb 0x{rip}').strip()}"
        for rip, times in found.most_common(4)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.guest.patching",
        description=__doc__,
        epilog="Exit status: 1 if it hung.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("minutes", nargs="?", type=float, default=10, help="how long to try (default: 10)")
    until = time.monotonic() + 60 * parser.parse_args().minutes
    rounds = 0
    with Guest(GuestSpec(cpus=4)) as guest:
        guest.run("echo 0 > /sys/kernel/tracing/tracing_on")
        while time.monotonic() < until:
            try:
                _patch(guest)
            except GuestTimeout:
                print(f"\nIt hangs after {rounds} rounds. Where its vCPUs are, and what is there:")
                print(_where(guest))
                guest.hmp("one-insn-per-tb on")
                print(guest.run("echo All code is made anew, and it goes on.").output, end="")
                return 1
            rounds += _SWITCHES
            print(f"\r{rounds} rounds", end="", flush=True)
    print("\nIt did not hang.")
    return 0


if __name__ == "__main__":
    run_command(main)
