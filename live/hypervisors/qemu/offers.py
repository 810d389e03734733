"""What a QEMU guest offers to be trapped by: the TCG plugin, and the gdb stub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from live.core.errors import TargetError
from live.core.hypervisor import TrapOffer
from live.core.machine import Architecture
from live.core.traps import Access, TrapSource
from live.hypervisors.qemu.gdbstub.source import GdbSource
from live.hypervisors.qemu.memory.stub import NO_TRAPS, StubMemory
from live.hypervisors.qemu.plugin.source import PluginSource

if TYPE_CHECKING:
    from live.hypervisors.qemu.guest import QemuGuest

_STAND_LIMIT = 5.0
"""Seconds for which the guest stands at most, where the plugin needs that for a moment."""
_PLUGIN_READS_REGISTERS = (9, 2)


def offers_of(guest: QemuGuest) -> Sequence[TrapOffer]:
    """All of them, the best first."""
    return (PluginOffer(guest), GdbOffer(guest))


class PluginOffer:
    """Traps by the plugin that the guest was started with; TCG only."""

    mode = "plugin"
    supports = PluginSource.supports

    def __init__(self, guest: QemuGuest) -> None:
        """Nothing is opened."""
        self._guest = guest

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        """None: where it can be had it is the best."""
        return None

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> TrapSource:
        """See `live.core.hypervisor.TrapOffer.open`."""
        guest = self._guest
        memory = guest.memory
        if isinstance(memory, StubMemory):
            raise TargetError(NO_TRAPS)
        if guest.accelerator != "tcg":
            raise TargetError(f"Plugins work under TCG only, and this guest runs on {guest.accelerator}.")
        version = tuple(int(part) for part in guest.version.split(".")[:2] if part.isdigit())
        if version and version < _PLUGIN_READS_REGISTERS:
            raise TargetError(f"QEMU {guest.version} is too old for the trap plugin; it needs 9.2 or newer.")
        if guest.process.plugin_socket is None:
            raise TargetError(
                'The guest was started without the trap plugin; start it with -plugin "$(pse plugin SOCKET)".'
            )

        def address(gpa: int, length: int) -> int:
            memory.hva(gpa + length - 1)  # all of it is RAM
            return memory.hva(gpa)

        return PluginSource(guest.process.plugin_socket, machine, address, hold, nudge=self._stand)

    def _stand(self) -> None:
        with self._guest.standing(_STAND_LIMIT):
            pass


class GdbOffer:
    """Traps by the gdb stub, which is started on the running guest."""

    mode = "gdbstub"
    supports = GdbSource.supports

    def __init__(self, guest: QemuGuest) -> None:
        """Nothing is opened."""
        self._guest = guest

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        """Under TCG each stop at a breakpoint makes QEMU translate the guest anew; one at a watchpoint does
        not.
        """
        if isinstance(self._guest.memory, StubMemory) or self._guest.accelerator != "tcg" or Access in kinds:
            return None
        return (
            "under TCG, and with breakpoints, as this guest would need, it slows the guest down a lot; ask "
            "for it with --mode gdbstub."
        )

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> TrapSource:
        """See `live.core.hypervisor.TrapOffer.open`."""
        if isinstance(self._guest.memory, StubMemory):
            raise TargetError(NO_TRAPS)
        watch = self._guest.accelerator == "tcg" and Access in kinds
        return GdbSource(self._guest, machine, hold, watch=watch)
