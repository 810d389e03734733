"""``python3 -m tests.guest``: boot a guest and keep it, or dump one."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from . import kernels
from .command import run_command
from .guest import Guest
from .spec import GuestSpec


def _spec(options: argparse.Namespace) -> GuestSpec:
    memory = options.memory.upper()
    scale = 1024 if memory.endswith("G") else 1
    return GuestSpec(
        kernel=options.kernel,
        memory=int(memory.rstrip("MG")) * scale,
        cpus=options.cpus,
        cpu_model=options.cpu,
        append=options.append,
        qemu=options.qemu,
        machine=options.machine,
        ram=options.ram,
        kaslr=not options.nokaslr,
        plugins=tuple(options.plugin),
        extra=tuple(options.extra),
        stress=options.stress,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.guest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("boot", "boot a guest, keep it until Ctrl-C"),
        ("dump", "boot a guest, dump its memory"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--kernel", default="6.1", help=f"one of {', '.join(kernels.KERNELS)}")
        command.add_argument("--cpus", type=int, default=1)
        command.add_argument("--memory", default="512M")
        command.add_argument("--cpu", default="qemu64", help="CPU model")
        command.add_argument("--append", default="", help="more of the kernel's command line")
        command.add_argument("--qemu", default="10", help="10 or 7.2")
        command.add_argument("--machine", default="q35")
        command.add_argument("--ram", default="memfd", choices=("memfd", "file", "private"))
        command.add_argument("--nokaslr", action="store_true")
        command.add_argument("--plugin", action="append", default=[], help="argument for QEMU's -plugin")
        command.add_argument("--extra", action="append", default=[], help="one more argument for QEMU")
        command.add_argument("--stress", action="store_true", help="put stress-ng into the guest")
        command.add_argument(
            "--run", action="append", default=[], help="shell line to run in the guest first"
        )
        if name == "dump":
            command.add_argument("-o", "--output", type=Path, required=True, help="FILE.raw or FILE.elf")
        else:
            command.add_argument("--loop", help="shell line to run in the guest again and again")
    commands.add_parser("fetch", help="fetch all kernels into the cache, and print them")
    return parser


def main() -> int:
    options = _parser().parse_args()
    if options.command == "fetch":
        for name in kernels.KERNELS:
            image = kernels.fetch(name)
            print(f"{name:6} {image.release:32} {image.vmlinuz}")
        return 0
    with Guest(_spec(options)) as guest:
        for line in options.run:
            print(guest.run(line).output, end="")
        if options.command == "dump":
            guest.stop()
            dump = guest.dump_elf if options.output.suffix == ".elf" else guest.dump_raw
            print(dump(options.output))
            return 0
        _keep(guest, options.loop)
    return 0


def _keep(guest: Guest, loop: str | None) -> None:
    # Ends with the guest, or with Ctrl-C, which may come as soon as the last line is out.
    with contextlib.suppress(KeyboardInterrupt):
        emulator = guest.emulator.version
        print(f"kernel  {guest.kernel.release}, QEMU {emulator}, up after {guest.boot_seconds:.1f} s")
        print(f"pid     {guest.pid}")
        print(f"console {guest.directory / 'console.log'}")
        print(f"monitor {guest.monitor}", flush=True)
        guest.start(f"while :; do {loop or 'sleep 1000000'}; done").wait(timeout=None)


if __name__ == "__main__":
    run_command(main)
