"""Makes QEMU translate some of the guest's code anew, and leaves the rest as it is.

TCG gives up a block of generated code when the guest memory that it was made of is written, even with what
was there already (system/physmem.c, invalidate_and_set_dirty).  The gdb stub can write.  It is used for a few
milliseconds, in which the guest stands, and ended if it was not there before.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from live.core.errors import MemoryFault, TargetError
from live.core.memory import GuestPhysical
from live.hypervisors.qemu.gdbstub.physical import PhysicalClient
from live.hypervisors.qemu.gdbstub.server import StubConnection
from live.hypervisors.qemu.guest import QemuGuest

_LIMIT = 2.0
"""Seconds for which the guest stands, before its guardian lets it go."""


def remake(guest: QemuGuest, gpas: Collection[GuestPhysical]) -> bool:
    """Whether all code that has the bytes at these addresses in it is given up.

    It is not if a debugger uses the gdb stub, QEMU refuses one, or an address is not in guest RAM.
    Raises `GuestGone`.
    """
    try:
        for gpa in gpas:
            guest.memory.find(gpa, 1)
        with guest.pause(_LIMIT), closing(StubConnection(guest.monitor, guest.info)) as stub:
            PhysicalClient(stub.socket).rewrite(gpas)
    except (TargetError, MemoryFault):
        return False
    return True
