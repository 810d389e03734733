"""QEMU as a `live.core.hypervisor.Hypervisor`."""

from __future__ import annotations

from collections.abc import Sequence

from live.core.hypervisor import Guest, GuestInfo
from live.hypervisors.qemu import discover


class Qemu:
    """Guests of QEMU on this host, through their monitors."""

    scheme = "qemu"
    title = "QEMU"

    def guests(self) -> Sequence[GuestInfo]:
        """Every running QEMU system emulator that this process can see, by pid."""
        return [process.info for process in discover.list_guests()]

    def attach(self, target: str | None) -> Guest:
        """See `live.hypervisors.qemu.guest.attach`."""
        from live.hypervisors.qemu.guest import attach  # noqa: PLC0415 - listing guests needs none of it

        return attach(target)


QEMU = Qemu()
