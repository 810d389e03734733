"""The contract suite on a guest in the fake of PANDA; what is about code addresses is skipped there."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable, Iterator

import pytest

from live.core.memory import GuestPhysical
from live.core.traps import Word
from live.hypervisors.panda import PandaGuest
from live.testing import Function, GuestContract, Subject
from tests.contract.fake import FUNCTIONS
from tests.hypervisors.panda_fake import FakePanda
from tests.hypervisors.panda_runs import Running

PLACE = 0x200000
COUNTER = Word(gpa=GuestPhysical(0x204000))
BORN = itertools.count(1)


def live_and_die(panda: FakePanda, count: int) -> Callable[[], None]:
    """So many processes: their system calls, and their asids."""
    for number in range(count):
        own = 0x20000 + 0x4000 * number
        panda.write(COUNTER.gpa, struct.pack("<Q", next(BORN)))
        panda.call(56)
        panda.load_root(own | 1)  # a PCID
        panda.call(59)
        panda.call(231, first=number)
        panda.load_root(0x10000)
    return panda.done()


def subject_of(panda: FakePanda) -> Subject:
    def put(text: bytes) -> int:
        panda.ram[PLACE : PLACE + len(text)] = text
        return PLACE

    return Subject(
        open=lambda: PandaGuest(panda),
        work=lambda count: live_and_die(panda, count),
        functions=[Function(address=one) for one in FUNCTIONS],
        words=(COUNTER,),
        end=panda.end_analysis,
        put=put,
        hold=0.3,
        quiet=0.05,
        patience=5.0,
    )


class TestPanda(GuestContract):
    modes = ("panda",)

    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        with Running(FakePanda(ram=bytearray(range(256)) * (1 << 14))) as panda:
            yield subject_of(panda)

    @pytest.fixture
    def mortal(self, subject: Subject) -> Subject:
        """Without functions: code addresses cannot be armed."""
        return dataclasses.replace(subject, functions=())


class TestPandaWithRamAboveFourGiB(TestPanda):
    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        ram = bytearray(range(256)) * (1 << 15)
        with Running(FakePanda(ram=ram, split=3 << 20)) as panda:
            yield subject_of(panda)
