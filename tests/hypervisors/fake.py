"""Fakes in this process.

`FakeSource` is a `TrapSource` whose traps are scripted; calls are logged, faults are injected.  A whole
machine with a guest that has every capability is in `tests.contract.fake`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from live.arch.x86_64 import X86_64
from live.core.errors import GuestGone, TargetError
from live.core.machine import Architecture
from live.core.memory import Asid, GuestPhysical, GuestVirtual
from live.core.traps import (
    Abi,
    Access,
    AsidChange,
    CodeHit,
    Syscall,
    Trap,
    TrapCounters,
    TrapRequest,
    VcpuIndex,
)
from tests.hypervisors.wanted import action_of, told


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


def syscall(sequence: int, number: int, *, abi: Abi = Abi.NATIVE, **rest: Any) -> Syscall:
    return Syscall(number=number, abi=abi, **common(sequence, **rest))


def asid_change(sequence: int, new_asid: int, *, words: Iterable[int] = (), **rest: Any) -> AsidChange:
    """``words``: gpas of those that have moved; told of are those that were asked for."""
    moved = tuple(GuestPhysical(gpa) for gpa in words)
    return AsidChange(new_asid=Asid(new_asid), moved=bool(moved), words=moved, **common(sequence, **rest))


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

    def __init__(
        self,
        script: Iterable[Trap] = (),
        on_wait: Callable[[], None] | None = None,
        machine: Architecture = X86_64,
    ) -> None:
        self.script: deque[Trap] = deque(script)
        self.request = TrapRequest()
        self.calls: list[tuple[str, object]] = []
        self.faults = Faults()
        self.held: dict[int, int] = {}
        self.closed = False
        self._on_wait, self._machine = on_wait, machine
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
            trap = self._passing(self.script.popleft())
            if trap is None:
                continue
            self._delivered += 1
            if trap.sequence in self.faults.late:
                self._timeouts += 1
            elif trap.held:
                self.held[trap.vcpu] = trap.sequence
            return trap
        return None

    def _passing(self, trap: Trap) -> Trap | None:
        """As it is reported; None if it was not asked for.  Whether it is held the script says."""
        moved = {*trap.words} if isinstance(trap, AsidChange) else set()
        words = tuple(word.gpa for word in self.request.words if word.gpa in moved)
        seen = told(self.request, trap, self._machine, lambda: words)
        return seen if seen is not None and action_of(self.request, seen, self._machine) else None

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        self.calls.append(("resume", trap.sequence))
        if self.held.get(trap.vcpu) == trap.sequence:
            del self.held[trap.vcpu]

    def close(self) -> None:
        self.calls.append(("close", None))
        self.held.clear()
        self.closed = True
