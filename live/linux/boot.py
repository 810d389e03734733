"""Facts about the guest as a whole: host name, boot id, clocks."""

from __future__ import annotations

import hashlib
import uuid

from live.core.errors import MemoryFault
from live.core.system import System
from live.linux.clock import KernelClock
from live.linux.kernel import LinuxKernel


def read_system(kernel: LinuxKernel) -> System:
    """Host name, release, boot id and boot time, from the kernel's globals.

    The kernel generates its boot id (/proc/sys/kernel/random/boot_id) on first use.  If no one in the guest
    has used it, an id is derived from KASLR's choices and the start of the first process.  Guest memory
    never makes this raise.
    """
    boot_id, clocks = _boot_id(kernel), KernelClock(kernel).read()
    return System(
        hostname=_uts(kernel, "nodename"),
        release=_uts(kernel, "release"),
        boot_id=str(boot_id or _derived(kernel)),
        boot_id_known=boot_id is not None,
        boot_ns=clocks.epoch_ns if clocks else None,
    )


def _uts(kernel: LinuxKernel, member: str) -> str | None:
    address = kernel.symbol("init_uts_ns")
    if address is None:
        return None
    offset = kernel.symbols.offset("uts_namespace", f"name.{member}")
    try:
        return kernel.memory.string(address + offset, 65).decode("utf-8", "surrogateescape")
    except MemoryFault:
        return None


def _boot_id(kernel: LinuxKernel) -> uuid.UUID | None:
    address = kernel.symbol("sysctl_bootid")  # drivers/char/random.c
    if address is None:
        return None
    try:
        raw = kernel.memory.read(address, 16)
    except MemoryFault:
        return None
    return uuid.UUID(bytes=raw) if any(raw) else None


def _derived(kernel: LinuxKernel) -> uuid.UUID:
    """A boot id from KASLR's choices and pid 1's start time: constant in one boot, different in the next."""
    place = kernel.place
    first = next((task for task in kernel.snapshot(0, "").tasks if task.identity.pid == 1), None)
    seed = (place.kaslr_shift, place.phys_base, kernel.memory.direct, first.identity if first else None)
    return uuid.UUID(bytes=hashlib.sha256(repr(seed).encode()).digest()[:16], version=5)
