"""What a guest is to be, as a value: equal specs may share one running guest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """One guest."""

    kernel: str = "6.1"
    """A name of the table in kernels.py."""
    memory: int = 512
    """RAM in MiB."""
    cpus: int = 1
    cpu_model: str = "qemu64"
    """``max`` turns on 5-level paging, an Intel model turns on page-table isolation."""
    append: str = ""
    """Appended to the kernel's command line."""
    qemu: str = "10"
    """A name of the table in emulator.py: ``10`` or ``7.2``."""
    machine: str = "q35"
    accel: str = "tcg"
    ram: Literal["memfd", "file", "private"] = "memfd"
    """Where guest RAM is: shared anonymous file, shared unlinked file, or memory of QEMU alone."""
    kaslr: bool = True
    paused: bool = False
    """Stop before the first instruction; the caller lets it go on and waits with Guest.wait_ready()."""
    reboot: bool = False
    """Let the guest reboot. If not, a reboot (and so a panic) ends QEMU."""
    stress: bool = False
    """Put stress-ng into the initramfs."""
    state: Path | None = None
    """Do not boot, but go on from what Guest.save() wrote of a guest with the same spec."""
    plugins: tuple[str, ...] = ()
    """Arguments of ``-plugin``: path of the shared object, then its options, separated by commas."""
    monitor: bool = True
    """Whether QEMU has a monitor: the lab's own, and one for whoever is being tested."""
    extra: tuple[str, ...] = ()
    """More arguments for QEMU, at the end."""

    def command_line(self) -> str:
        """Return the kernel's command line."""
        words = [
            "console=ttyS0,115200",
            "quiet",
            # A panic is the end, at once: the lab sees QEMU exit and shows the console.
            "panic=-1",
            "rdinit=/init",
            # Calibrating and watching clocks takes long, and false alarms are common, when every tick is
            # emulated.
            "no_timer_check",
            "tsc=reliable",
            "nowatchdog",
            "random.trust_cpu=on",
        ]
        if not self.kaslr:
            words.append("nokaslr")
        return " ".join([*words, self.append]).strip()
