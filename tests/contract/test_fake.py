"""The contract on a machine in this process: the reference that every check has to pass, and most run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from live.core.machine import Architecture
from live.core.memory import Run
from live.core.traps import Fence, Watchpoint
from live.testing import Faults, FaultyGuest, Function, GuestContract, Subject
from live.testing.traps import TrapContract
from tests.contract.fake import BEHIND, COUNTER, FUNCTIONS, WORD, FakeGuest, FakeMachine
from tests.hypervisors.fake import FakeSource, code_hit

RAM = 1 << 18
PLACED = [Run(0, 0, 0x20000), Run(0x100000, 0x20000, 0x10000), Run(1 << 32, 0x30000, 0x10000)]
"""The second and the third lie behind holes, and the file has them one behind the other."""


def subject_of(
    machine: FakeMachine,
    *,
    opened: Callable[..., FakeGuest] = FakeGuest,
    patience: float = 5.0,
    **options: Any,
) -> Subject:
    return Subject(
        open=lambda: opened(machine, **options),
        work=machine.work,
        functions=tuple(Function(address=one) for one in FUNCTIONS),
        fences=frozenset(Fence(code=one, offset=0) for one in FUNCTIONS[:-1]),
        accesses=frozenset({Watchpoint(word=WORD, behind=frozenset({BEHIND}))}),
        words=(COUNTER,),
        pause=machine.pause,
        resume=machine.resume,
        end=machine.end,
        put=machine.put if options.get("runs") is None else None,
        hold=0.3,
        quiet=0.03,
        patience=patience,
    )


class TestEveryCapability(GuestContract):
    modes = ("hold", "stop")
    refused = ("broken",)

    @pytest.fixture
    def subject(self) -> Subject:
        return subject_of(FakeMachine(bytearray(range(256)) * (RAM // 256)))


class TestRamInSegments(GuestContract):
    """No traps, and RAM with holes."""

    @pytest.fixture
    def subject(self) -> Subject:
        machine = FakeMachine(bytearray(range(256)) * (RAM // 256))
        return subject_of(machine, runs=PLACED, traps=False)


class TestThroughFaultyMemory(GuestContract):
    """What injects faults does what the contract says, where it injects none."""

    @pytest.fixture
    def subject(self) -> Subject:
        machine = FakeMachine(bytearray(RAM))
        return Subject(open=lambda: FaultyGuest(FakeGuest(machine, runs=PLACED, traps=False), Faults()))


class ScriptedOffer:
    """Opens a `FakeSource`; what the guest does next goes into the script of the last that was opened."""

    mode = "fake"
    supports = FakeSource.supports

    def __init__(self) -> None:
        self.source = FakeSource()

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        return None

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> FakeSource:
        self.source = FakeSource()
        return self.source

    def work(self, count: int) -> Callable[[], None]:
        for pc in FUNCTIONS * count:
            self.source.script.append(code_hit(self._next(), pc, rdi=0))
        return lambda: None

    def _next(self) -> int:
        return self.source.counters.delivered + len(self.source.script) + 1


class TestScriptedTraps(TrapContract):
    """The fake that scripts are played on: all but the limit of a hold, because in it no time passes."""

    modes = ("fake",)
    test_a_hold_has_a_limit_and_traps_go_on = None  # type: ignore[assignment]
    test_a_hold_has_a_limit_where_nobody_waits_for_traps = None  # type: ignore[assignment]

    @pytest.fixture
    def subject(self) -> Subject:
        machine, offer = FakeMachine(bytearray(RAM)), ScriptedOffer()

        def opened() -> FakeGuest:
            guest = FakeGuest(machine, runs=PLACED)
            guest.offers = (offer,)
            return guest

        return Subject(
            open=opened,
            work=offer.work,
            functions=tuple(Function(address=one) for one in FUNCTIONS),
            fences=frozenset(Fence(code=one, offset=0) for one in FUNCTIONS[:-1]),
            quiet=0.01,
        )
