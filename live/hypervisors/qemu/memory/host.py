"""Guest RAM in QEMU's process: the monitor says where, `live.hypervisors.host.memory` reads it.

`live.hypervisors.qemu.memory.layout` explains what the monitor is asked.  Where the operating system allows
neither to map nor to read the process's memory, `live.hypervisors.qemu.memory.stub` does.
"""

from __future__ import annotations

from live.core.errors import TargetError
from live.core.memory import PAGE_SIZE, Segment
from live.hypervisors.host import memory
from live.hypervisors.host.segments import HostRun
from live.hypervisors.qemu.memory import layout
from live.hypervisors.qemu.monitor.client import Monitor


def locate(monitor: Monitor) -> list[HostRun]:
    """Ask the monitor where guest RAM lies in QEMU's process.  Does not stop the guest.

    Raises `TargetError` when the answers do not fit together (a machine type that this does not know).
    """
    runs = []
    for one in ram(monitor):
        first = layout.parse_hva(monitor.hmp(f"gpa2hva {one.start:#x}"))
        last = layout.parse_hva(monitor.hmp(f"gpa2hva {one.start + one.length - 1:#x}"))
        if first is None or last is None or last - first != one.length - 1:
            raise TargetError(
                f"QEMU does not have the guest's RAM at {one.start:#x} in one piece; report it."
            )
        runs.append(HostRun(start=one.start, length=one.length, hva=first))
    return runs


def ram(monitor: Monitor) -> list[Segment]:
    """Ask the monitor which guest-physical addresses are RAM, one segment a RAM block.

    Does not stop the guest.  Raises `TargetError` if there is none.
    """
    ranges = layout.main_memory(
        layout.parse_flat_view(monitor.hmp("info mtree -f")),
        layout.parse_backends(monitor.hmp("info memdev")),
    )
    segments = [Segment(start=one.start, length=one.length) for one in ranges if one.length >= PAGE_SIZE]
    if not segments:
        raise TargetError("QEMU reports no guest RAM (info mtree -f); is this a system emulator for x86-64?")
    return segments


def open_memory(monitor: Monitor, pid: int, *, allow_mapping: bool = True) -> memory.HostMemory:
    """The best reader for the guest of process ``pid``; its ``description`` says which it is and why.

    ``allow_mapping=False`` copies even where RAM could be mapped (for comparing).  Raises `NotPermitted`,
    `GuestGone`, `TargetError`.
    """
    return memory.open_memory(locate(monitor), pid, allow_mapping=allow_mapping)
