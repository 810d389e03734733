"""What a hypervisor offers: guests, and of each guest the capabilities that it declares.  No I/O here.

A guest always has memory.  Everything else is optional, declared by an attribute that is None where the
hypervisor has it not: registers, pauses, notices of what happens to the machine, RAM that has to be placed.
Traps are *offers*: a mode by name, what it guarantees, and how to open it.  Whoever watches chooses among
them (`live.watch.modes`).

To add a hypervisor: a package with an object that is a `Hypervisor`, registered as an entry point of the
group ``pse.hypervisors`` under its scheme (docs/ADDING.md).  `live.testing` checks it against this contract.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from live.core.errors import GuestGone
from live.core.machine import Architecture, Registers
from live.core.memory import MemoryReader, Run
from live.core.traps import TrapSource, VcpuIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInfo:
    """A running guest, as its hypervisor lists it; what is not known has its default."""

    name: str
    """What the user calls it; the target that `Hypervisor.attach` takes, unless it is ambiguous."""
    pid: int = 0
    """Of the hypervisor's process on this host; 0 if it cannot be seen from here."""
    machine: str = "x86_64"
    """The architecture, as `Architecture.name` has it."""
    memory: int = 0
    """Guest RAM in bytes."""
    vcpus: int = 0
    """How many there were at start."""
    accelerator: str = ""
    """How its instructions are executed, as the hypervisor calls it."""
    control: str = ""
    """Where the hypervisor is spoken to: the path of a socket, or its address."""


class Notice(str, enum.Enum):
    """What happened to the machine as a whole."""

    RESET = "reset"
    """It begins anew: whatever RAM held belongs to a boot that is over."""
    ENDED = "ended"
    """It was switched off."""
    STOPPED = "stopped"
    """Its vCPUs stand, by whomever."""
    RESUMED = "resumed"
    """Its vCPUs run again."""


class RegisterReader(Protocol):
    """Registers of a vCPU, read while the guest runs: each value is one moment's."""

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """The vCPUs that there were when the guest was attached to."""

    def read(self, vcpu: VcpuIndex) -> Registers:
        """Registers by lower-case name, unsigned.  Raises `GuestGone`."""


class Pauses(Protocol):
    """Makes the whole guest stand still, and sees to it that it goes on."""

    def paused(self) -> bool:
        """Whether the vCPUs stand, by whomever.  Raises `GuestGone`."""

    def standing(self, limit: float | None = None) -> AbstractContextManager[bool]:
        """The guest stands still within; True if it did not before.

        It goes on behind it, even if we are killed, unless somebody else had paused it.  Beyond ``limit``
        seconds, if we hang, it is let go; None: as long as it takes.  Raises `TargetError`, `GuestGone`.
        """


class Notices(Protocol):
    """What the hypervisor tells of the machine, without being asked."""

    def take(self) -> Sequence[Notice]:
        """Those since the last call, oldest first."""


class TrapOffer(Protocol):
    """A way to be told of what happens in the guest, not opened yet."""

    @property
    def mode(self) -> str:
        """What ``--mode`` selects and the output says."""

    @property
    def supports(self) -> frozenset[type]:
        """The classes of traps that its source will have (`live.core.traps.TrapSource.supports`)."""

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        """Why the offer is not taken unless the user asks for it, a sentence; None: it may be.

        ``kinds``: of the classes of traps those by which all that is wanted can be had, each by itself.
        """

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> TrapSource:
        """Open it; the caller closes it.  ``hold``: seconds that a vCPU may be held at most.

        Raises `TargetError` if it cannot be had, as while another source is open, with what to do about it;
        `GuestGone`.
        """


class UnplacedRam(Protocol):
    """RAM of which it is known where the host has it, but not where in guest-physical space it lies.

    Until it is placed, the guest's `memory` shows it as one run from gpa 0.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    def placed(self, runs: Sequence[Run]) -> MemoryReader:
        """A reader for RAM that lies so; the guest's own is not changed."""

    def place(self, runs: Sequence[Run]) -> None:
        """From now on the guest's `memory` is laid out so."""


class Guest(Protocol):
    """An attached guest.  Attaching and reading do not stop it, unless `memory` says so."""

    @property
    def info(self) -> GuestInfo:
        """Which guest it is."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how it is attached, a sentence each."""

    @property
    def memory(self) -> MemoryReader:
        """Its physical memory."""

    @property
    def registers(self) -> RegisterReader | None:
        """Registers of its vCPUs."""

    @property
    def pauses(self) -> Pauses | None:
        """How to make it stand still."""

    @property
    def notices(self) -> Notices | None:
        """What is told of the machine."""

    @property
    def unplaced(self) -> UnplacedRam | None:
        """RAM that somebody who knows the guest's system has to place."""

    @property
    def offers(self) -> Sequence[TrapOffer]:
        """Ways to trap, the best first; none: it can be polled only."""

    def alive(self) -> bool:
        """Whether the machine still exists; cheap."""

    def gone(self) -> GuestGone:
        """The error to raise when it has ended."""

    def keep_memory_only(self) -> None:
        """Leave everything but memory to others, where memory can be read without it."""

    def close(self) -> None:
        """Let go of everything; the guest runs on as if never watched.  Safe to call twice.

        Whatever is asked of the guest after that raises a `live.core.errors.PseError`.
        """


class Hypervisor(Protocol):
    """One kind of hypervisor, or one way to reach several."""

    @property
    def scheme(self) -> str:
        """What targets and URLs of it begin with: ``SCHEME:TARGET``, ``SCHEME:///TARGET``."""

    @property
    def title(self) -> str:
        """Its name, for people."""

    def guests(self) -> Sequence[GuestInfo]:
        """The running guests that can be seen from here; quick, and without attaching."""

    def attach(self, target: str | None) -> Guest:
        """Attach to a running guest; None: the only one there is.

        Raises `NoTarget`, `NotPermitted`, `TargetError` or `GuestGone`, each a sentence for the user.
        """
