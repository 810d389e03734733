"""QEMU: guest memory, monitor and traps of a guest that is already running.

::

    with attach("web-1") as guest:          # a monitor socket, a pid, a VM name, or None
        guest.memory.flat[gpa : gpa + 8]    # zero-copy where the guest's RAM can be mapped
        guest.memory.description            # how its memory is read, for the output
        guest.registers(0)["cr3"]
"""

from live.hypervisors.qemu.discover import GuestInfo, list_guests
from live.hypervisors.qemu.guest import QemuGuest, attach
from live.hypervisors.qemu.offers import Choice, choose

__all__ = ["Choice", "GuestInfo", "QemuGuest", "attach", "choose", "list_guests"]
