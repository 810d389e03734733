"""The machine behind a `Panda` object: whether it is there, whether it is over, its vCPUs and registers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from live.core.errors import GuestGone, TargetError
from live.core.machine import Registers
from live.core.traps import VcpuIndex
from live.hypervisors.panda import registers
from live.hypervisors.panda.api import Cpu, Panda

MOST_VCPUS = 256
"""QEMU 2.9 has 255 at most; a list that goes on is broken."""
_GLANCE_S = 0.05


class Machine:
    """One run of a `Panda`; also a `live.core.hypervisor.RegisterReader`.

    Our callbacks belong to it: pandare removes every callback when its `run` returns.
    """

    def __init__(self, panda: Panda, registered: Callable[[], bool], patience: float) -> None:
        """``registered``: whether they still are; ``patience``: seconds to wait for the run to begin."""
        self.panda = panda
        self.name = f"panda-{os.getpid()}"
        self._registered, self._patience = registered, patience
        self._closed = self._ran = False

    def over(self) -> bool:
        """Whether the run has ended or is about to, or nothing may be asked of it any more; cheap."""
        running = self.panda.running.is_set()
        about_to = self.panda.ending if running else self._ran
        return self._closed or about_to or not self._registered()

    def gone(self) -> GuestGone:
        """The error to raise then."""
        if self._closed:
            return GuestGone(f"The guest {self.name} was closed; make another one of its Panda object.")
        return GuestGone(
            f"The guest {self.name} has ended, its panda.run() with it; make a new guest before the next run."
        )

    def require(self) -> None:
        """There is a machine and it is not over.

        Waits for `panda.run()` to begin.  Raises `GuestGone`, or `TargetError` if it does not begin in time.
        """
        deadline = time.monotonic() + self._patience
        while not self.over():
            if self.panda.running.wait(max(0.0, min(_GLANCE_S, deadline - time.monotonic()))):
                self._ran = True
                return
            if time.monotonic() >= deadline:
                raise TargetError(
                    f"The guest {self.name} does not run yet, after {self._patience:g} s; call panda.run() "
                    "in the main thread, and watch from another one."
                )
        raise self.gone()

    def close(self) -> None:
        """Ask nothing of it any more."""
        self._closed = True

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """See `live.core.hypervisor.RegisterReader.vcpus`.  Raises `GuestGone`, `TargetError`."""
        return tuple(sorted(self._cpus()))

    def read(self, vcpu: VcpuIndex) -> Registers:
        """See `live.core.hypervisor.RegisterReader.read`.

        General registers and the program counter are those of the last time at which the vCPU left
        generated code; all others are the present ones.
        """
        cpu = self._cpus().get(vcpu)
        if cpu is None:
            raise TargetError(f"The guest {self.name} has no vCPU {vcpu}; name another one.")
        return registers.read(self.panda, cpu, registers.ALL)

    def _cpus(self) -> dict[VcpuIndex, Cpu]:
        self.require()
        found: dict[VcpuIndex, Cpu] = {}
        cpu, null = self.panda.get_cpu(), self.panda.ffi.NULL
        while cpu != null and len(found) < MOST_VCPUS:
            found[VcpuIndex(int(cpu.cpu_index))] = cpu
            cpu = cpu.node.tqe_next
        return found
