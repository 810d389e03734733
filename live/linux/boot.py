"""What is true of the whole guest: its name, its boot, its clock."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

from live.core.errors import MemoryFault
from live.linux.kernel import LinuxKernel
from live.linux.layout import field


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One boot of one guest.

    ``hostname``: the node name of the initial uts namespace.  ``boot_id``: as
    /proc/sys/kernel/random/boot_id has it; the kernel makes it up when it is first asked for, so
    for a guest in which nobody asked it is derived here from what the boot randomised, and
    ``boot_id_known`` is False.  ``boot_ns``: UTC ns at which the boot clock was 0, by the guest's
    own wall clock; None if the kernel's timekeeper was not found.
    """

    hostname: str | None
    release: str | None
    boot_id: str
    boot_id_known: bool
    boot_ns: int | None


def read_system(kernel: LinuxKernel) -> System:
    """Read it from the kernel's globals.  Never raises on account of guest memory."""
    boot_id = _boot_id(kernel)
    return System(
        hostname=_uts(kernel, "nodename"),
        release=_uts(kernel, "release"),
        boot_id=str(boot_id or _derived(kernel)),
        boot_id_known=boot_id is not None,
        boot_ns=_boot_ns(kernel),
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
    """Stable within a boot and different in the next: KASLR's choices and the first process's start."""
    place = kernel.place
    first = next((task for task in kernel.snapshot(0, "").tasks if task.identity.pid == 1), None)
    seed = (place.kaslr_shift, place.phys_base, kernel.memory.direct, first.identity if first else None)
    return uuid.UUID(bytes=hashlib.sha256(repr(seed).encode()).digest()[:16], version=5)


def _boot_ns(kernel: LinuxKernel) -> int | None:
    # tk_core until 6.18, an array whose first element is the core timekeeper since.
    address = kernel.symbol("tk_core", "timekeeper_data")
    if address is None:
        return None
    # Both are a sequence counter and the timekeeper; the struct has a name since 6.13 only.
    inner = kernel.symbols.member("tk_data", "timekeeper")
    read = kernel.unpacker("timekeeper", (field("offs_real"), field("offs_boot")))
    try:
        real, boot = read(address + (inner.offset if inner else 8))
    except MemoryFault:
        return None
    # Both are offsets from the monotonic clock, in ns.
    return int(real) - int(boot)
