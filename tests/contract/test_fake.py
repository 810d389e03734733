"""The contract on a machine in this process: the reference that every check has to pass, and most run on."""

from __future__ import annotations

import pytest

from live.core.memory import Run
from live.core.traps import Fence, Watchpoint
from live.testing import Faults, FaultyGuest, Function, GuestContract, Subject
from tests.contract.fake import BEHIND, FUNCTIONS, WORD, FakeGuest, FakeMachine

RAM = 1 << 18
PLACED = [Run(0, 0, 0x20000), Run(0x100000, 0x20000, 0x10000), Run(1 << 32, 0x30000, 0x10000)]
"""The second and the third lie behind holes, and the file has them one behind the other."""


def subject_of(machine: FakeMachine, **options) -> Subject:
    return Subject(
        open=lambda: FakeGuest(machine, **options),
        work=machine.work,
        functions=tuple(Function(address=one) for one in FUNCTIONS),
        fences=frozenset(Fence(code=one, offset=0) for one in FUNCTIONS[:-1]),
        accesses=frozenset({Watchpoint(word=WORD, behind=frozenset({BEHIND}))}),
        pause=machine.pause,
        resume=machine.resume,
        end=machine.end,
        put=machine.put if options.get("runs") is None else None,
        hold=0.3,
        quiet=0.03,
        patience=5.0,
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
