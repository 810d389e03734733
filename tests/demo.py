"""`make demo`: boot a small guest, let it start and end processes, and watch it from outside.

Everything shown is real: Debian's own kernel, a stock QEMU, and at the end the guest's own tracer,
which is asked only so that you need not take our word for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from live.core.errors import PseError
from live.hypervisors.qemu.plugin import build
from tests.guest import Guest, GuestSpec
from tests.guest.command import run_command

SECONDS = 20
# By their paths: busybox's shell runs what it knows by name as /proc/self/exe, and the name would be "exe".
WORKLOAD = b"""\
#!/bin/sh
while :; do
    /bin/ls -l / >/dev/null
    (/bin/sleep 0.2; exit 3)
    /bin/sleep 60 & /bin/sleep 0.1; kill -9 $!
    /bin/sh -c 'echo hello | /bin/cat >/dev/null'
    /bin/sleep 0.4
done
"""


def say(text: str) -> None:
    """A line of explanation, apart from what the command prints."""
    print(f"\n# {text}", flush=True)


def spec(directory: str) -> GuestSpec:
    """A guest with the trap plugin if it can be built here; else it is watched in another mode."""
    try:
        return GuestSpec(plugins=(build.argument(Path(directory) / "trap.sock"),))
    except PseError as error:
        say(str(error))
        return GuestSpec()


def main() -> int:
    """Run the demo; the exit status is that of `pse watch`."""
    how = "installed" if os.geteuid() == 0 else "unpacked into your cache directory, for want of root"
    say(f"Fetching QEMU and a kernel through apt if they are not here yet; QEMU is {how}.")
    try:
        with tempfile.TemporaryDirectory(prefix="pse-") as directory, Guest(spec(directory)) as guest:
            say(
                f"Linux {guest.kernel.release} is up in QEMU {guest.emulator.version} after "
                f"{guest.boot_seconds:.1f} s, by software emulation: no KVM, no agent, no symbol files."
            )
            guest.push(WORKLOAD, "/tmp/workload")
            guest.start(["/tmp/workload"])
            command = ["watch", str(guest.monitor), "--duration", str(SECONDS), "--new"]
            say(f"pse {' '.join(command)}")
            status = subprocess.run([sys.executable, "-m", "live.cli.main", *command], check=False).returncode
    except KeyboardInterrupt:
        status = 0
    say("The guest has been ended; nothing is left running.")
    return status


if __name__ == "__main__":
    run_command(main)
