"""The guest of a `Panda` object: memory, registers, and traps by callbacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

from live.core.errors import GuestGone, TargetError
from live.core.hypervisor import GuestInfo, RegisterReader
from live.core.machine import Architecture
from live.core.memory import MemoryReader
from live.core.traps import AsidChange, Syscall, TrapSource
from live.hypervisors.panda.api import Panda
from live.hypervisors.panda.callbacks import Callbacks
from live.hypervisors.panda.machine import Machine
from live.hypervisors.panda.memory import PandaMemory
from live.hypervisors.panda.source import MODE, PandaSource, supported

MACHINE = "x86_64"
"""The architecture that is known here, as PANDA and `Architecture.name` both have it."""
PATIENCE = 30.0
"""Seconds to wait for `panda.run()`."""


class PandaGuest:
    """A `live.core.hypervisor.Guest`, and one of its offers; a context manager."""

    pauses = None
    notices = None
    unplaced = None

    def __init__(self, panda: Panda, *, patience: float = PATIENCE) -> None:
        """Make it before ``panda.run()``; the guest is that run's.

        ``patience``: seconds for which whatever needs the machine waits for the run to begin.  Raises
        `TargetError` for an architecture that is not known here.
        """
        if panda.arch_name != MACHINE:
            raise TargetError(
                f"PANDA's {panda.arch_name} guests are not known here; make it Panda(arch={MACHINE!r}, ...)."
            )
        self._callbacks = Callbacks(panda)
        self._machine = Machine(panda, self._callbacks.registered, patience)
        self._panda = panda
        self._memory: PandaMemory | None = None
        self._source: PandaSource | None = None
        self.registers: RegisterReader = self._machine
        self._supports: frozenset[type] | None = None
        self.offers = (self,)

    @property
    def notes(self) -> Sequence[str]:
        """Why its system calls cannot be trapped; of several vCPUs it is known when it runs."""
        if self._panda.os is None:
            return (
                "PANDA was not told the guest's operating system (os_version), so system calls cannot be "
                "trapped",
            )
        if self.info.vcpus > 1:
            return (
                "PANDA takes every system call for one of the first vCPU, so with several vCPUs (-smp) "
                "system calls cannot be trapped",
            )
        return ()

    @property
    def info(self) -> GuestInfo:
        """Which guest it is; RAM and vCPUs are known when it runs."""
        runs = self._panda.running.is_set() and not self._machine.over()
        return GuestInfo(
            name=self._machine.name,
            pid=os.getpid(),
            machine=MACHINE,
            memory=int(self._panda.libpanda.ram_size) if runs else 0,
            vcpus=len(self._machine.vcpus) if runs else 0,
            accelerator="tcg",
        )

    @property
    def memory(self) -> MemoryReader:
        """Its physical memory.  Waits for the run to begin.  Raises `TargetError`, `GuestGone`."""
        if self._memory is None:
            self._memory = PandaMemory(self._machine)
        return self._memory

    def alive(self) -> bool:
        """Whether the run that it belongs to is not over."""
        return not self._machine.over()

    def gone(self) -> GuestGone:
        """The error to raise when it is."""
        return self._machine.gone()

    def keep_memory_only(self) -> None:
        """Nothing here is kept from others."""

    def close(self) -> None:
        """Let go of everything; PANDA runs on.  Safe to call twice."""
        if self._source is not None:
            self._source.close()
        self._machine.close()

    # -- the offer

    mode = MODE

    @property
    def supports(self) -> frozenset[type]:
        """See `live.core.hypervisor.TrapOffer.supports`.

        Waits for the run to begin, once.  Raises `TargetError`, `GuestGone`.
        """
        if self._supports is None:
            self._supports = supported(self._machine)
        return self._supports

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        """See `live.core.hypervisor.TrapOffer.reluctance`."""
        if kinds & {AsidChange, Syscall}:
            return None
        return "PANDA's callbacks trap asid changes and system calls only, and other traps are wanted."

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> TrapSource:
        """See `live.core.hypervisor.TrapOffer.open`."""
        if machine.name != MACHINE:
            raise TargetError(f"PANDA's callbacks are known here for {MACHINE} only, not for {machine.name}.")
        self._machine.require()
        if self._source is not None and not self._source.closed:
            raise TargetError(
                f"The guest {self._machine.name} serves another reader; end that one first, or make another "
                "guest of the Panda object."
            )
        self._source = PandaSource(self._machine, self._callbacks, self.memory, machine, hold)
        return self._source

    def __enter__(self) -> PandaGuest:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def guest(panda: Panda) -> PandaGuest:
    """The guest of ``panda``, a `pandare.Panda`; see `PandaGuest`."""
    return PandaGuest(panda)
