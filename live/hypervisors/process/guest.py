"""The guest of any VMM that keeps guest RAM in its process: found, read, and watched for its end.

Theory of operation
-------------------
Linux tells a process's memory to whoever may trace it.  Which of its mappings is guest RAM, `find` knows;
`live.hypervisors.host.memory` maps or copies it.  Where RAM lies in guest-physical space the process does not
say: until somebody who knows the guest's system has placed it (`Guest.unplaced`), it is one run from gpa 0.

A pidfd is opened before anything of /proc/PID, and looked at after all of it: all of it then belongs to one
process.  That it executes another program, meanwhile or later, shows in a descriptor of /proc/PID/mem, which
stays with the address space (`live.hypervisors.process.handle`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType

from live.core.errors import GuestGone, NoTarget
from live.core.hypervisor import Guest, GuestInfo
from live.core.memory import MemoryReader
from live.hypervisors.host.maps import read_maps
from live.hypervisors.host.memory import open_memory
from live.hypervisors.process.find import LEAST, Ram, find_ram
from live.hypervisors.process.handle import Process, keeps_memory_from_host, parse_pid, why_no_memory
from live.hypervisors.process.ram import ProcessRam


class ProcessGuest:
    """A `live.core.hypervisor.Guest` with memory and nothing else; a context manager."""

    registers = None
    pauses = None
    notices = None
    offers = ()

    def __init__(self, process: Process, ram: ProcessRam, notes: Sequence[str]) -> None:
        """Use `attach`.  Owns ``process`` and ``ram``."""
        self._process = process
        self.unplaced = ram
        self.notes = notes
        self.info = GuestInfo(name=f"{process.command} (pid {process.pid})", pid=process.pid, memory=ram.size)

    @property
    def memory(self) -> MemoryReader:
        """Its physical memory, as it is placed now."""
        return self.unplaced.memory

    def alive(self) -> bool:
        """Whether the process still runs the program that it was attached to with."""
        return self._process.alive()

    def gone(self) -> GuestGone:
        """The error to raise when it does not."""
        return GuestGone(f"The guest of {self.info.name} has ended; start it to watch again.")

    def keep_memory_only(self) -> None:
        """There is nothing else."""

    def close(self) -> None:
        """Let go of the process and its memory.  Safe to call twice."""
        self.unplaced.close()
        self._process.close()

    def __enter__(self) -> ProcessGuest:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def attach(target: str | None) -> ProcessGuest:
    """Attach to the guest that process ``target`` (a pid) runs.  Does not stop it.

    Raises `NoTarget` if that is no process, or none with RAM of a guest; `NotPermitted`, `GuestGone`.
    """
    pid = parse_pid(target)
    with contextlib.ExitStack() as opened:
        process = Process(pid)
        opened.callback(process.close)
        mappings = read_maps(pid)
        if not mappings:
            raise NoTarget(
                f"The process {pid} ({process.command}) {why_no_memory(pid)}, so it runs no guest; give the "
                "id of the VMM's process."
            )
        found = find_ram(mappings)
        if found is None:
            raise NoTarget(
                f"The process {pid} ({process.command}) has no memory of {LEAST >> 20} MiB or more that "
                "could be RAM of a guest; give the id of the process that runs the guest."
            )
        plain = open_memory(found.pieces, pid, mappings=mappings)
        opened.callback(plain.close)
        guest = ProcessGuest(process, ProcessRam(plain), _notes(pid, found))
        if not guest.alive():
            raise guest.gone()
        opened.pop_all()
    return guest


def _notes(pid: int, found: Ram) -> tuple[str, ...]:
    if not keeps_memory_from_host(pid):
        return found.notes
    return (
        *found.notes,
        "the guest keeps memory from this host (guest_memfd): what is in there cannot be read from outside",
    )


class ProcessHypervisor:
    """A `live.core.hypervisor.Hypervisor`: whatever runs a guest in a process of this host."""

    scheme = "process"
    title = "any VMM, by its process id"

    def guests(self) -> Sequence[GuestInfo]:
        """None: which processes run a guest is known when one is attached to."""
        return ()

    def attach(self, target: str | None) -> Guest:
        """See `attach`."""
        return attach(target)


PROCESS = ProcessHypervisor()
