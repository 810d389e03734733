"""Where a running kernel begins a system call."""

from __future__ import annotations

from live.core.memory import GuestVirtual
from live.core.traps import Abi
from live.linux.kernel import LinuxKernel


def entries(kernel: LinuxKernel) -> frozenset[tuple[GuestVirtual, Abi]]:
    """Its system-call entry points; none if the native one is unknown."""
    facts = kernel.facts
    found = {name: kernel.symbol(name) for name in facts.entries}
    if found[facts.native_entry] is None:
        return frozenset()
    return frozenset(
        (GuestVirtual(address), facts.entries[name]) for name, address in found.items() if address is not None
    )
