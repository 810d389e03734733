"""Which boot of which host a kernel is: host name, release, boot id, and a key that is there early."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import replace

from live.core.errors import MemoryFault
from live.core.system import System
from live.linux.clock import Clocks, KernelClock
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

_FIRST_PID = 1
_NAMELESS = (b"", b"(none)")
"""CONFIG_DEFAULT_HOSTNAME: nobody has given the host a name yet."""
_LONGEST = 65
"""__NEW_UTS_LEN, and a NUL."""


class BootReader:
    """Reads what is known of the boot, as often as one likes: it becomes known bit by bit while it boots."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Nothing is read yet."""
        self._kernel, self._clock = kernel, KernelClock(kernel)
        self._boot_id = kernel.symbol("sysctl_bootid")  # drivers/char/random.c
        uts = kernel.symbol("init_uts_ns")
        self._names: dict[str, int] = {}
        if uts is not None:
            for member in ("nodename", "release"):
                self._names[member] = uts + kernel.symbols.offset("uts_namespace", f"name.{member}")
        self._name: bytes | None = None

    def clocks(self) -> Clocks | None:
        """The guest's clocks now; None if they cannot be read."""
        return self._clock.read()

    def first(self) -> System:
        """The boot as known now.  Guest memory never makes this raise."""
        key = boot_key(self._kernel)
        nothing = System(hostname=None, release=None, boot_id=key, boot_id_known=False, boot_ns=None, key=key)
        return self.again(nothing, self.clocks())

    def again(self, known: System, clocks: Clocks | None) -> System:
        """The boot as known now; what can no longer be read stays as ``known``."""
        name, epoch_ns = self._raw("nodename"), clocks.epoch_ns if clocks else known.boot_ns
        boot_id = None if known.boot_id_known else self._generated()
        if (name, epoch_ns) == (self._name, known.boot_ns) and boot_id is None and known.release:
            return known
        self._name = name
        return replace(
            known,
            hostname=known.hostname if name in _NAMELESS else _text(name),
            release=known.release or _text(self._raw("release")) or None,
            boot_id=boot_id or known.boot_id,
            boot_id_known=known.boot_id_known or boot_id is not None,
            boot_ns=epoch_ns,
        )

    def _raw(self, member: str) -> bytes:
        """A string of `init_uts_ns`, up to its NUL; empty if it cannot be read."""
        address = self._names.get(member)
        if address is None:
            return b""
        try:
            return bytes(self._kernel.memory.read(address, _LONGEST)).partition(b"\0")[0]
        except MemoryFault:
            return b""

    def _generated(self) -> str | None:
        """The boot id (/proc/sys/kernel/random/boot_id); None before its first use, which makes it."""
        if self._boot_id is None:
            return None
        try:
            raw = self._kernel.memory.read(self._boot_id, 16)
        except MemoryFault:
            return None
        return str(uuid.UUID(bytes=raw)) if any(raw) else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def boot_key(kernel: LinuxKernel) -> str:
    """What tells this boot from all others; "" if there is no first process yet.

    Made of what is there before the first process is, and never changes: KASLR's choices, the stack canary of
    CPU 0's idle task (random, set at the beginning of start_kernel()), and the start time of pid 1.
    """
    place = kernel.place
    first = next((task for task in kernel.snapshot(0, "").tasks if task.identity.pid == _FIRST_PID), None)
    if first is None:
        return ""
    seed = (place.kaslr_shift, place.phys_base, kernel.memory.direct, _canary(kernel), first.identity.start)
    return str(uuid.UUID(bytes=hashlib.sha256(repr(seed).encode()).digest()[:16], version=5))


def _canary(kernel: LinuxKernel) -> int | None:
    if not kernel.symbols.has("task_struct", "stack_canary"):
        return None
    read: Callable[[int], tuple[int, ...]] = kernel.unpacker("task_struct", (field("stack_canary"),))
    try:
        return read(kernel.address("init_task"))[0]
    except MemoryFault:
        return None
