"""Fakes in this process.

`FakeSource` is a `TrapSource` whose traps are scripted; calls are logged, faults are injected.  A whole
machine with a guest that has every capability is in `tests.contract.fake`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from live.core.errors import GuestGone, TargetError
from live.core.memory import Asid, GuestVirtual
from live.core.traps import (
    Access,
    AsidChange,
    CodeHit,
    Syscall,
    Trap,
    TrapCounters,
    TrapRequest,
    VcpuIndex,
)


def common(
    sequence: int = 1,
    *,
    vcpu: int = 0,
    asid: int = 0x1000_0000,
    pc: int = 0,
    held: bool = True,
    **registers: int,
) -> dict[str, Any]:
    """The fields that all traps have."""
    return {
        "vcpu": VcpuIndex(vcpu),
        "asid": Asid(asid),
        "pc": GuestVirtual(pc),
        "sequence": sequence,
        "time_ns": sequence * 1000,
        "held": held,
        "registers": registers,
    }


def code_hit(sequence: int, pc: int, **rest: Any) -> CodeHit:
    return CodeHit(**common(sequence, pc=pc, **rest))


def syscall(sequence: int, number: int, **rest: Any) -> Syscall:
    return Syscall(number=number, **common(sequence, **rest))


def asid_change(sequence: int, new_asid: int, *, moved: bool = False, **rest: Any) -> AsidChange:
    return AsidChange(new_asid=Asid(new_asid), moved=moved, **common(sequence, **rest))


def access(sequence: int, pc: int, word: int, **rest: Any) -> Access:
    return Access(address=GuestVirtual(word), **common(sequence, pc=pc, **rest))


@dataclass
class Faults:
    """What goes wrong, and when; set at any time."""

    arm: TargetError | None = None
    gone_after: int | None = None
    """Raise `GuestGone` instead of the trap with this number of deliveries before it."""
    late: set[int] = field(default_factory=set)
    """Sequences of holds that run into the limit: the vCPU has gone on before `resume`."""


class FakeSource:
    """Delivers scripted traps that the armed request lets through."""

    mode = "fake"
    description = "scripted traps"
    guarantee = "Every scripted trap that was asked for is delivered, in order."
    supports: frozenset[type] = frozenset({AsidChange, Syscall, CodeHit, Access})
    prefers: type = CodeHit
    holds_all = False

    def __init__(self, script: Iterable[Trap] = (), on_wait: Callable[[], None] | None = None) -> None:
        self.script: deque[Trap] = deque(script)
        self.request = TrapRequest()
        self.calls: list[tuple[str, object]] = []
        self.faults = Faults()
        self.held: dict[int, int] = {}
        self.closed = False
        self._on_wait = on_wait
        self._delivered = self._timeouts = 0

    @property
    def counters(self) -> TrapCounters:
        return TrapCounters(delivered=self._delivered, hold_timeouts=self._timeouts)

    def arm(self, request: TrapRequest) -> None:
        self.calls.append(("arm", request))
        if self.faults.arm is not None:
            raise self.faults.arm
        self.request = request

    def wait(self, timeout: float | None) -> Trap | None:
        self.calls.append(("wait", timeout))
        if self._on_wait is not None:
            self._on_wait()
        while self.script:
            if self.faults.gone_after == self._delivered:
                raise GuestGone("The guest has ended; start it to watch again.")
            if self.script[0].vcpu in self.held:
                return None  # its vCPU waits
            trap = self.script.popleft()
            if not self._wanted(trap):
                continue
            self._delivered += 1
            if trap.sequence in self.faults.late:
                self._timeouts += 1
            elif trap.held:
                self.held[trap.vcpu] = trap.sequence
            return trap
        return None

    def _wanted(self, trap: Trap) -> bool:
        request = self.request
        if isinstance(trap, CodeHit):
            return trap.pc in request.code
        if isinstance(trap, Access):
            return any(trap.address == one.word and trap.pc in one.behind for one in request.accesses)
        if isinstance(trap, Syscall):
            numbers = request.compat_syscalls if trap.abi else request.syscalls
            return bool(request.every_syscall) or trap.number in numbers or trap.asid in request.pending
        return bool(request.asid_changes) or (trap.moved and bool(request.words))

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        self.calls.append(("resume", trap.sequence))
        if self.held.get(trap.vcpu) == trap.sequence:
            del self.held[trap.vcpu]

    def close(self) -> None:
        self.calls.append(("close", None))
        self.held.clear()
        self.closed = True
