"""`TrapSource` over PANDA's callbacks: asid changes and system calls."""

from __future__ import annotations

import functools

from live.core.machine import Architecture, Registers
from live.core.memory import Asid, GuestPhysical, GuestVirtual, MemoryReader
from live.core.traps import (
    Abi,
    AsidChange,
    CodeHit,
    Syscall,
    Trap,
    TrapCounters,
    TrapRequest,
    VcpuIndex,
)
from live.hypervisors.panda import registers
from live.hypervisors.panda.api import Cpu
from live.hypervisors.panda.callbacks import Callbacks
from live.hypervisors.panda.decide import SYSCALL_BYTES, Filter, Words, abi_of, refuse
from live.hypervisors.panda.holding import Moment, TrapQueue
from live.hypervisors.panda.machine import Machine

MODE = "panda"
_NUMBER = (1 << 32) - 1
"""The bits of a system call's number."""


def supported(machine: Machine) -> frozenset[type]:
    """The classes of traps that can be had of a machine: system calls only if PANDA can tell whose they are.

    Waits for the run to begin.  Raises `GuestGone`, `TargetError`.
    """
    kinds: set[type] = {AsidChange}
    if len(machine.vcpus) == 1 and machine.panda.os is not None:
        kinds.add(Syscall)
    return frozenset(kinds)


class PandaSource:
    """The reader of one guest's callbacks."""

    mode = MODE
    description = "callbacks in PANDA, in this process"
    holds_all = True
    prefers: type = CodeHit
    guarantee = (
        "Every asid change and every system call that is asked for is seen before it happens; no held one is "
        "dropped, and the machine stands no longer than the limit if we hang."
    )

    def __init__(
        self,
        machine: Machine,
        callbacks: Callbacks,
        memory: MemoryReader,
        architecture: Architecture,
        hold: float,
    ) -> None:
        """``hold``: seconds that the machine stands at most.  Raises `GuestGone`, `TargetError`."""
        self.supports = supported(machine)
        self._machine, self._panda = machine, machine.panda
        self._callbacks, self._memory, self._architecture = callbacks, memory, architecture
        self._filter = Filter(TrapRequest())
        self._words = Words((), self._read)
        self._queue = TrapQueue(hold, machine.over)
        self._closed = False
        callbacks.listen(self._on_asid, self._on_syscall)

    @property
    def counters(self) -> TrapCounters:
        """See `live.core.traps.TrapSource.counters`."""
        return self._queue.counters

    def arm(self, request: TrapRequest) -> None:
        """See `live.core.traps.TrapSource.arm`.  Raises `MemoryFault` for a word that is not in guest RAM."""
        self._require()
        asked = Filter(request)
        refuse(asked, Syscall in self.supports)
        with self._queue.lock:
            if request.words != self._filter.request.words:
                self._words = Words(request.words, self._read, self._words)
            self._filter = asked
        self._callbacks.want(asids=asked.asids, syscalls=asked.syscalls)

    def wait(self, timeout: float | None) -> Trap | None:
        """See `live.core.traps.TrapSource.wait`."""
        self._require()
        trap = self._queue.take(timeout)
        self._require()
        return trap

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        """See `live.core.traps.TrapSource.resume`."""
        self._queue.release(trap)

    def close(self) -> None:
        """See `live.core.traps.TrapSource.close`.  Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with self._queue.lock:
            self._filter = Filter(TrapRequest())
        self._queue.close()
        if not self._machine.over():
            self._callbacks.want(asids=False, syscalls=False)

    @property
    def closed(self) -> bool:
        """Whether another source may be opened."""
        return self._closed

    def _require(self) -> None:
        if self._closed or self._machine.over():
            raise self._machine.gone()

    def _read(self, gpa: int, length: int) -> bytes:
        return bytes(self._memory.read(gpa, length))

    # -- on the thread of the vCPUs

    def _on_asid(self, cpu: Cpu, old: int, new: int) -> bool:
        with self._queue.lock:
            asid, new_asid = self._asid_of(old), self._asid_of(new)
            if self._filter.asids and asid != new_asid:
                words = self._words.moved()
                make = functools.partial(self._asid_change, cpu, asid, new_asid, words)
                self._queue.put(self._filter.asid_change(new_asid, bool(words)), make)
        return False

    def _on_syscall(self, cpu: Cpu, pc: int, number: int) -> None:
        if not self._filter.syscalls:
            return
        root = self._panda.current_asid(cpu)
        number &= _NUMBER
        abi, argument = functools.partial(self._abi, cpu, pc), functools.partial(self._argument, cpu)
        with self._queue.lock:
            asid = self._asid_of(root)
            action = self._filter.syscall(asid, number, abi, argument)
            self._queue.put(action, functools.partial(self._syscall, cpu, asid, pc, number))

    def _asid_of(self, root: int) -> Asid:
        """As the request tells them apart; with the lock."""
        return self._architecture.asid_of(root, split=self._filter.request.split_asids)

    def _argument(self, cpu: Cpu, abi: Abi) -> int:
        """The first one of the system call that is about to be made."""
        return self._architecture.call_argument(self._registers(cpu), abi, 0)

    def _abi(self, cpu: Cpu, pc: int) -> Abi:
        """Of the instruction that is about to execute; native if it cannot be read any more."""
        try:
            return abi_of(bytes(self._panda.virtual_memory_read(cpu, pc, SYSCALL_BYTES)))
        except ValueError:
            return Abi.NATIVE

    def _asid_change(
        self, cpu: Cpu, asid: Asid, new_asid: Asid, words: tuple[GuestPhysical, ...], moment: Moment
    ) -> Trap:
        return AsidChange(
            vcpu=VcpuIndex(int(cpu.cpu_index)),
            asid=asid,
            pc=GuestVirtual(int(self._panda.arch.get_pc(cpu))),
            registers=self._registers(cpu),
            new_asid=new_asid,
            moved=bool(words),
            words=words,
            sequence=moment.sequence,
            time_ns=moment.time_ns,
            held=moment.held,
        )

    def _syscall(self, cpu: Cpu, asid: Asid, pc: int, number: int, moment: Moment) -> Trap:
        return Syscall(
            vcpu=VcpuIndex(int(cpu.cpu_index)),
            asid=asid,
            pc=GuestVirtual(int(pc)),
            registers=self._registers(cpu),
            number=number,
            abi=self._abi(cpu, pc),
            sequence=moment.sequence,
            time_ns=moment.time_ns,
            held=moment.held,
        )

    def _registers(self, cpu: Cpu) -> Registers:
        return registers.read(self._panda, cpu, self._architecture.trap_registers)
