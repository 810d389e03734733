"""The contract on toys: with memory alone, and on a machine that runs the toy's kernel and has everything."""

from __future__ import annotations

import pytest

from live.core.memory import Asid, Run
from live.core.traps import AsidChange, CodeHit, Syscall
from live.testing import Function, GuestContract, Subject
from tests.contract.fake import FakeGuest, FakeMachine
from tests.toy.hypervisor import ToyGuest
from tests.toy.system import TOY, ToyAsids
from tests.toy.world import EXECUTED, EXITED, FORKED, PAGES, World


class TestToy(GuestContract):
    @pytest.fixture
    def subject(self) -> Subject:
        world = World()

        def put(text: bytes) -> int:
            world.ram[-64 : len(world.ram) - 64 + len(text)] = text
            return len(world.ram) - 64

        return Subject(open=lambda: ToyGuest("box", world.ram), put=put, systems=[TOY])


class TestToyWithEverything(GuestContract):
    """A `Monitor` over traps and memory with faults, too."""

    modes = ("hold", "stop")
    refused = ("broken",)

    @pytest.fixture
    def subject(self) -> Subject:
        world = World()

        def process(machine: FakeMachine, number: int) -> None:
            shell, child = world.page(world.shell), world.fork(2)
            machine.reach(CodeHit, child, pc=FORKED, asid=shell)
            machine.reach(AsidChange, new_asid=Asid(world.page(child)), asid=shell)
            machine.reach(Syscall, child, number=1, asid=world.page(child))
            world.execute(child, b"ls", b"/bin/ls")
            machine.reach(CodeHit, child, pc=EXECUTED, asid=world.page(child))
            machine.reach(Syscall, number=2, asid=world.page(child))
            world.exit(child, number)
            machine.reach(CodeHit, child, pc=EXITED, asid=world.page(child))
            machine.reach(AsidChange, new_asid=Asid(shell), asid=world.page(child))
            world.reap(child)

        registers = {"pc": EXITED, "table": PAGES}
        machine = FakeMachine(
            world.ram, architecture="toy", argument="a0", registers=registers, program=process
        )
        return Subject(
            open=lambda: FakeGuest(machine, runs=[Run(0, 0, len(world.ram))]),
            work=machine.work,
            functions=[Function(address=one) for one in (FORKED, EXECUTED, EXITED)],
            words=ToyAsids.words,
            pause=machine.pause,
            resume=machine.resume,
            end=machine.end,
            systems=[TOY],
            hold=0.3,
            quiet=0.03,
            patience=5.0,
        )
