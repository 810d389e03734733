"""A machine in this process, with every capability that there is: the reference of the contract.

A vCPU is a thread that does a piece of work.  At each step (`FakeMachine.reach`) it waits while the machine
stands, and while the source that is attached holds it.  One condition guards everything.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from live.core.errors import GuestGone, MemoryFault, PseError, TargetError
from live.core.hypervisor import GuestInfo, Notice
from live.core.machine import Architecture
from live.core.memory import Asid, GuestPhysical, GuestVirtual, InPlace, Run, Segment
from live.core.traps import (
    Access,
    Action,
    AsidChange,
    CodeHit,
    Syscall,
    Trap,
    TrapCounters,
    TrapRequest,
    VcpuIndex,
    Word,
)
from tests.hypervisors.wanted import action_of, told

FUNCTIONS = tuple(GuestVirtual(0xFFFF_FFFF_8100_0000 + 64 * number) for number in range(3))
"""What every process comes to: it begins, executes, ends."""
WORD, BEHIND = GuestVirtual(0xFFFF_FFFF_8200_0000), GuestVirtual(0xFFFF_FFFF_8100_1000)
"""What every process touches, and the address behind the instruction that does."""
COUNTER = Word(gpa=GuestPhysical(0x4000))
"""What counts the processes that began, in little-endian."""
RING = 64
"""Recorded traps that nobody has read; what comes then is dropped."""
GONE = "The guest has ended; start it to watch again."


class Over(Exception):
    """The machine has ended, and so does the thread that was its vCPU."""


class FakeMachine:
    """It outlives whoever attaches to it."""

    def __init__(
        self,
        ram: bytearray,
        *,
        architecture: str = "x86_64",
        argument: str = "rdi",
        registers: dict[str, int] | None = None,
        program: Callable[[FakeMachine, int], None] | None = None,
        patience: float = 10.0,
    ) -> None:
        """``program(machine, number)``: the life of one process; ``argument``: the register of it."""
        self.patience = patience
        self.ram, self.architecture, self.argument = ram, architecture, argument
        self.registers = registers or {"rip": 0xFFFF_FFFF_8100_0000, "cr3": 0x1000, "cr0": 1 << 31}
        self.changed = threading.Condition()
        self.foreign = self.ended = False
        self.standing_until = 0.0
        self.source: HoldingSource | None = None
        self.listeners: list[list[Notice]] = []
        self._program = program or life
        self._sequence = 0

    # -- what its vCPUs do

    def work(self, count: int) -> Callable[[], None]:
        def run() -> None:
            with contextlib.suppress(Over):
                for number in range(count):
                    self._program(self, number)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def wait() -> None:
            thread.join(self.patience)
            assert not thread.is_alive(), "the machine's work does not come to its end"

        return wait

    def reach(
        self, kind: type, argument: int = 0, *, pc: int = 0, asid: int = 0x10000, **fields: Any
    ) -> None:
        """A vCPU comes to something that may be trapped; asids are the roots of page tables here."""
        with self.changed:
            while not self.ended and self.stands():
                self.changed.wait(0.01)  # the limit of a pause is a time
            if self.ended:
                raise Over
            if self.source is not None:
                self._sequence += 1
                trap = kind(
                    vcpu=VcpuIndex(0),
                    asid=Asid(asid),
                    pc=GuestVirtual(pc),
                    sequence=self._sequence,
                    time_ns=time.monotonic_ns(),
                    held=False,
                    registers={self.argument: argument},
                    **fields,
                )
                self.source.take_in(trap)

    def count(self) -> None:
        """A process begins."""
        at = slice(COUNTER.gpa, COUNTER.gpa + COUNTER.size)
        number = int.from_bytes(self.ram[at], "little") + 1
        self.ram[at] = (number % (1 << 64)).to_bytes(COUNTER.size, "little")

    def stands(self) -> bool:
        return self.foreign or time.monotonic() < self.standing_until

    # -- what happens to it from outside

    def tell(self, notice: Notice) -> None:
        for one in self.listeners:
            one.append(notice)

    def pause(self) -> None:
        with self.changed:
            self.foreign = True
            self.tell(Notice.STOPPED)

    def resume(self) -> None:
        with self.changed:
            self.foreign = False
            self.tell(Notice.RESUMED)
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.tell(Notice.ENDED)
            self.changed.notify_all()

    def put(self, data: bytes) -> int:
        at = len(self.ram) - 0x2000
        self.ram[at : at + len(data)] = data
        return at


def life(machine: FakeMachine, number: int) -> None:
    """One process: what it does, step by step."""
    own = 0x20000 + 0x4000 * number
    machine.count()
    machine.reach(Syscall, number=56, pc=0x400000)
    machine.reach(CodeHit, pc=FUNCTIONS[0])
    machine.reach(AsidChange, new_asid=Asid(0x10001))  # the same asid
    machine.reach(AsidChange, new_asid=Asid(own))
    machine.reach(Syscall, number=59, pc=0x400000, asid=own)
    machine.reach(CodeHit, pc=FUNCTIONS[1], asid=own)
    machine.reach(Access, pc=BEHIND, address=WORD, asid=own)
    machine.reach(Syscall, number, number=231, pc=0x400000, asid=own)
    machine.reach(CodeHit, pc=FUNCTIONS[2], asid=own)
    machine.reach(AsidChange, new_asid=Asid(0x10000), asid=own)


class HoldingSource:
    """A `TrapSource` that really holds; one reader at a time."""

    description = "a fake that holds"
    guarantee = "Every step of the fake that was asked for is seen."
    prefers: type = CodeHit

    def __init__(self, offer: FakeOffer, architecture: Architecture, hold: float) -> None:
        self.mode, self.supports, self.holds_all = offer.mode, offer.supports, offer.holds_all
        self.guest, self.architecture, self.hold = offer.guest, architecture, hold
        machine = self.machine = offer.guest.machine
        self.request = TrapRequest()
        self.words: dict[Word, bytes] = {}
        """What each held when it was last compared."""
        self.ring: deque[Trap] = deque()
        self.held: set[int] = set()
        self.closed = False
        self._delivered = self._dropped = self._timeouts = self._held_ns = 0
        with machine.changed:
            if machine.ended:
                raise GuestGone(GONE)
            if machine.source is not None:
                raise TargetError("The fake serves another reader; end that one first.")
            machine.source = self

    @property
    def counters(self) -> TrapCounters:
        return TrapCounters(
            delivered=self._delivered,
            dropped=self._dropped,
            hold_timeouts=self._timeouts,
            held_ns=self._held_ns,
        )

    def arm(self, request: TrapRequest) -> None:
        self._check()
        wanted: set[type] = {CodeHit} if request.code else set()
        if request.asid_changes or request.unsettled_asids or request.words:
            wanted.add(AsidChange)
        if request.every_syscall or request.unsettled_syscalls or request.syscalls or request.compat_syscalls:
            wanted.add(Syscall)
        if request.accesses:
            wanted.add(Access)
        if wanted - self.supports:
            raise TargetError(f"The mode {self.mode} of the fake cannot trap that; use another one.")
        if any(word.size not in (4, 8) or word.gpa % word.size for word in request.words):
            raise TargetError("What is to be compared is no aligned word; ask for 4 or 8 bytes that are.")
        with self.machine.changed:
            # What has moved since it was last compared still counts.
            self.words = {word: self.words.get(word) or self._value(word) for word in request.words}
            self.request = request

    def _value(self, word: Word) -> bytes:
        return self.guest.memory.read(word.gpa, word.size)

    def moved(self) -> tuple[GuestPhysical, ...]:
        """Where words have moved since they were last compared."""
        now = dict(self.words)
        with contextlib.suppress(PseError):  # nobody reads a guest that is over
            now = {word: self._value(word) for word in self.words}
        before, self.words = self.words, now
        return tuple(word.gpa for word in now if now[word] != before[word])

    def action(self, trap: Trap) -> Action:
        return action_of(self.request, trap, self.architecture)

    def take_in(self, reached: Trap) -> None:
        """A vCPU is there; called with the lock."""
        trap = told(self.request, reached, self.architecture, self.moved)
        if trap is None:
            return
        action = self.action(trap)
        if action is Action.OFF:
            return
        if action is Action.RECORD:
            if len(self.ring) < RING:
                self.ring.append(trap)
            else:
                self._dropped += 1
            self.machine.changed.notify_all()
            return
        began = time.monotonic()
        self.held.add(trap.sequence)
        self.ring.append(replace(trap, held=True))
        self.machine.changed.notify_all()
        while trap.sequence in self.held and not self.closed and not self.machine.ended:
            if not self.machine.changed.wait(max(0.0, began + self.hold - time.monotonic())):
                self.held.discard(trap.sequence)
                self._timeouts += 1
        self._held_ns += int((time.monotonic() - began) * 1e9)

    def wait(self, timeout: float | None) -> Trap | None:
        self._check()
        with self.machine.changed:
            self.machine.changed.wait_for(lambda: self.ring or self.machine.ended, timeout)
            self._check()
            if not self.ring:
                return None
            self._delivered += 1
            return self.ring.popleft()

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        with self.machine.changed:
            self.held.discard(trap.sequence)
            self.machine.changed.notify_all()

    def close(self) -> None:
        with self.machine.changed:
            self.closed = True
            self.held.clear()
            if self.machine.source is self:
                self.machine.source = None
            self.machine.changed.notify_all()

    def _check(self) -> None:
        if self.machine.ended:
            raise GuestGone(GONE)


class FakeOffer:
    """One of them works, another one is refused."""

    def __init__(
        self,
        guest: FakeGuest,
        mode: str,
        supports: frozenset[type],
        *,
        holds_all: bool = False,
        refusal: str | None = None,
        source: type[HoldingSource] = HoldingSource,
    ) -> None:
        self.mode, self.supports, self.holds_all = mode, supports, holds_all
        self.guest, self._refusal, self._source = guest, refusal, source

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        return None if kinds & self.supports else "It cannot trap what is wanted."

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> HoldingSource:
        if self._refusal is not None:
            raise TargetError(self._refusal)
        return self._source(self, machine, hold)


class FakeMemory(InPlace):
    """Runs of a bytearray."""

    description = "a bytearray"

    def __init__(self, guest: FakeGuest, runs: Sequence[Run]) -> None:
        self.guest, self.runs = guest, [*runs]
        self.segments: tuple[Segment, ...] = tuple(Segment(start=r.start, length=r.length) for r in runs)
        whole = self.runs == [Run(0, 0, len(guest.machine.ram))]
        self.flat = memoryview(guest.machine.ram).toreadonly() if whole else None

    def read(self, gpa: int, length: int) -> bytes:
        if self.guest.closed or self.guest.machine.ended:
            raise GuestGone(GONE)
        for run in self.runs:
            if run.start <= gpa < run.start + run.length:
                if gpa + length > run.start + run.length:
                    raise MemoryFault(run.start + run.length)
                at = run.offset + gpa - run.start
                return bytes(self.guest.machine.ram[at : at + length])
        raise MemoryFault(gpa)


class FakeGuest:
    """Every capability; it is its own registers, pauses, notices and unplaced RAM."""

    def __init__(
        self, machine: FakeMachine, *, runs: Sequence[Run] | None = None, traps: bool = True
    ) -> None:
        """``runs``: how RAM lies; None: it has to be placed."""
        self.machine, self.closed = machine, False
        self.size = len(machine.ram)
        self.info = GuestInfo(name="fake", machine=machine.architecture, memory=self.size, vcpus=1)
        self.notes = ("this guest is a fake",)
        self.registers = self.pauses = self.notices = self
        self.unplaced = self if runs is None else None
        self.memory = FakeMemory(self, runs or [Run(0, 0, self.size)])
        self.vcpus = (VcpuIndex(0),)
        every: frozenset[type] = frozenset({AsidChange, Syscall, CodeHit, Access})
        self.offers = (
            FakeOffer(self, "hold", every),
            FakeOffer(self, "broken", every, refusal="This offer never works; use another one."),
            FakeOffer(self, "stop", frozenset({CodeHit}), holds_all=True),
        )[: 3 if traps else 0]
        self._news: list[Notice] = []
        machine.listeners.append(self._news)

    def read(self, vcpu: VcpuIndex) -> dict[str, int]:
        self._check()
        return dict(self.machine.registers)

    def paused(self) -> bool:
        self._check()
        return self.machine.stands()

    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        self._check()
        machine = self.machine
        with machine.changed:
            ours = not machine.stands()
            if ours:
                machine.standing_until = math.inf if limit is None else time.monotonic() + limit
                machine.tell(Notice.STOPPED)
        try:
            yield ours
        finally:
            if ours:
                with machine.changed:
                    machine.standing_until = 0.0
                    machine.tell(Notice.RESUMED)
                    machine.changed.notify_all()

    def take(self) -> list[Notice]:
        news, self._news[:] = [*self._news], []
        return news

    def placed(self, runs: Sequence[Run]) -> FakeMemory:
        return FakeMemory(self, runs)

    def place(self, runs: Sequence[Run]) -> None:
        self.memory = FakeMemory(self, runs)

    def alive(self) -> bool:
        return not self.closed and not self.machine.ended

    def gone(self) -> GuestGone:
        return GuestGone(GONE)

    def keep_memory_only(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def _check(self) -> None:
        if self.closed or self.machine.ended:
            raise GuestGone(GONE)
