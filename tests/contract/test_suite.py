"""The suite itself: whatever breaks the contract is found, each by the check that is for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import GuestGone, MemoryFault
from live.core.hypervisor import Notice
from live.core.machine import Architecture
from live.core.memory import PAGE_SIZE, GuestPhysical, Run, Segment
from live.core.traps import Access, Action, AsidChange, CodeHit, Syscall, Trap, TrapRequest
from live.testing import Faults, FaultyMemory, GuestContract
from tests.contract.fake import FakeGuest, FakeMachine, FakeMemory, FakeOffer, HoldingSource
from tests.contract.test_fake import PLACED, RAM, subject_of

pytestmark = pytest.mark.slow
CHECKS = GuestContract()
_GOOD = [Run(0, 0, 0x20000), Run(0x100000, 0x20000, 0x20000)]


def machine() -> FakeMachine:
    return FakeMachine(bytearray(range(256)) * (RAM // 256), patience=2.0)


# -- memory


class BlamesTheBeginning(FakeMemory):
    def read(self, gpa: int, length: int) -> bytes:
        try:
            return super().read(gpa, length)
        except MemoryFault as fault:
            raise MemoryFault(gpa) from fault


class ReadsShort(FakeMemory):
    def read(self, gpa: int, length: int) -> bytes:
        try:
            return super().read(gpa, length)
        except MemoryFault as fault:
            return super().read(gpa, fault.address - gpa)


class CountsFromTheEnd(FakeMemory):
    def read(self, gpa: int, length: int) -> bytes:
        return super().read(gpa if gpa >= 0 else self.segments[-1].end + gpa, length)


class Overlaps(FakeMemory):
    def __init__(self, guest: FakeGuest, runs: Sequence[Run]) -> None:
        super().__init__(guest, runs)
        self.segments = (*self.segments, Segment(start=0x11_0000, length=0x1000))


class StaleFlat(FakeMemory):
    def __init__(self, guest: FakeGuest, runs: Sequence[Run]) -> None:
        super().__init__(guest, runs)
        self.flat = memoryview(bytes(self.segments[-1].end))


class WritableFlat(FakeMemory):
    def __init__(self, guest: FakeGuest, runs: Sequence[Run]) -> None:
        super().__init__(guest, runs)
        self.flat = memoryview(bytearray(self.segments[-1].end))


class HidesPages(FakeMemory):
    def populated(self) -> Sequence[Segment]:
        return ()


class NeverRests(FakeMemory):
    def rest(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (BlamesTheBeginning, "test_a_fault_names_the_first_bad_address"),
        (ReadsShort, "test_a_fault_names_the_first_bad_address"),
        (CountsFromTheEnd, "test_no_address_is_too_strange"),
        (Overlaps, "test_segments_ascend_and_do_not_overlap"),
        (StaleFlat, "test_flat_shows_what_is_read"),
        (WritableFlat, "test_flat_shows_what_is_read"),
        (HidesPages, "test_what_is_not_populated_is_zeros"),
        (NeverRests, "test_refreshing_and_resting"),
    ],
)
def test_memory_that_breaks_the_contract_is_found(kind: type[FakeMemory], check: str) -> None:
    guest = FakeGuest(machine())
    getattr(CHECKS, check)(FakeMemory(guest, [Run(0, 0, RAM)] if "flat" in check else _GOOD))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(CHECKS, check)(kind(guest, _GOOD))


# -- the guest


class CrashesWhenClosed(FakeGuest):
    def _check(self) -> None:
        if self.closed:
            raise RuntimeError("the event loop is closed")


class ReadsOnWhenClosed(FakeGuest):
    def close(self) -> None:
        pass


class LetsOthersGo(FakeGuest):
    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        with super().standing(limit) as ours:
            yield ours
        self.machine.foreign = False


class ForgetsTheLimit(FakeGuest):
    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        with super().standing(None) as ours:
            yield ours


class ClaimsEveryPause(FakeGuest):
    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        with super().standing(limit):
            yield True


class StaysStanding(FakeGuest):
    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        with super().standing(limit) as ours:
            yield ours
            if ours:
                self.machine.foreign = True


class ForgetsItselfAtAnError(FakeGuest):
    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        self.machine.standing_until = math.inf
        yield True
        self.machine.standing_until = 0.0


class NewestFirst(FakeGuest):
    def take(self) -> list[Notice]:
        return super().take()[::-1]


class PlacesWhatIsTried(FakeGuest):
    def placed(self, runs: Sequence[Run]) -> FakeMemory:
        self.place(runs)
        return self.memory


class UpperCase(FakeGuest):
    def read(self, vcpu: int) -> dict[str, int]:
        return {**super().read(vcpu), "CR4": 0}


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (CrashesWhenClosed, "test_what_is_closed_says_so_and_never_crashes"),
        (ReadsOnWhenClosed, "test_what_is_closed_says_so_and_never_crashes"),
        (LetsOthersGo, "test_a_pause_of_somebody_else_stays"),
        (ClaimsEveryPause, "test_a_pause_of_somebody_else_stays"),
        (ForgetsTheLimit, "test_a_pause_has_a_limit"),
        (ClaimsEveryPause, "test_a_pause_stands_and_goes_on"),
        (ForgetsItselfAtAnError, "test_a_pause_ends_with_an_error_too"),
        (StaysStanding, "test_a_pause_stands_and_goes_on"),
        (NewestFirst, "test_notices"),
        (PlacesWhatIsTried, "test_unplaced_ram"),
        (UpperCase, "test_registers"),
    ],
)
def test_a_guest_that_breaks_the_contract_is_found(kind: type[FakeGuest], check: str) -> None:
    def run(guest: FakeGuest) -> None:
        subject = subject_of(guest.machine, patience=1.0)
        wanted = {"subject": subject, "guest": guest}
        method = getattr(CHECKS, check)
        names = method.__func__.__code__.co_varnames[1 : method.__func__.__code__.co_argcount]
        method(**{name: wanted[name] for name in names})

    run(FakeGuest(machine()))
    with pytest.raises((Exception, pytest.fail.Exception)):  # a crash is as good as a failed assertion
        run(kind(machine()))


# -- sources of traps


class Loses(HoldingSource):
    def take_in(self, trap: Trap) -> None:
        if trap.sequence % 7:
            super().take_in(trap)


class Repeats(HoldingSource):
    def wait(self, timeout: float | None) -> Trap | None:
        trap = super().wait(timeout)
        if trap is not None and trap.sequence % 6 == 0 and trap not in self.ring:
            self.ring.appendleft(trap)
        return trap


class Swaps(HoldingSource):
    """Numbers its traps as it likes."""

    def wait(self, timeout: float | None) -> Trap | None:
        trap = super().wait(timeout)
        if trap is not None:
            self.resume(trap)
            trap = type(trap)(
                **{name: getattr(trap, name) for name in trap.__dataclass_fields__ if name != "sequence"},
                sequence=-trap.sequence,
            )
        return trap


class StaysArmed(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        if request != TrapRequest():
            super().arm(request)


class AddsUp(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(TrapRequest(code=request.code | self.request.code))


class HoldsForEver(HoldingSource):
    def __init__(self, offer: FakeOffer, architecture: Architecture, hold: float) -> None:
        super().__init__(offer, architecture, hold)
        self.hold = 1000.0


class HoldsTheClosed(HoldingSource):
    def close(self) -> None:
        with self.machine.changed:
            self.machine.source = None


class CountsNothing(HoldingSource):
    def take_in(self, trap: Trap) -> None:
        super().take_in(trap)
        self._timeouts = 0


class TakesAnything(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        self.request = request


class SaysNothingAtTheEnd(HoldingSource):
    def _check(self) -> None:
        pass


class PassesFences(HoldingSource):
    def take_in(self, trap: Trap) -> None:
        if self.request.fences:
            self.ring.append(trap)
            self.machine.changed.notify_all()
        else:
            super().take_in(trap)


class TrapsTheSettled(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(replace(request, settled=frozenset()))


class SettlesForEver(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(replace(request, settled=request.settled | self.request.settled))


class IgnoresPending(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(replace(request, pending=frozenset()))


class IgnoresFlags(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(replace(request, call_flags=frozenset()))


class TakesFlagsForNone(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        flags = frozenset(replace(one, bits=0) for one in request.call_flags)
        super().arm(replace(request, call_flags=flags))


class TellsAtEachChange(HoldingSource):
    def moved(self) -> tuple[GuestPhysical, ...]:
        return tuple(word.gpa for word in self.words)


class TellsItsOwnAddresses(HoldingSource):
    def moved(self) -> tuple[GuestPhysical, ...]:
        return tuple(GuestPhysical(0x7F00_0000_0000 + gpa) for gpa in super().moved())


class MissesCalls(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(replace(request, unsettled_syscalls=Action.OFF))


class MissesChanges(HoldingSource):
    def arm(self, request: TrapRequest) -> None:
        super().arm(replace(request, unsettled_asids=Action.OFF, words=()))


class RecordsOnly(HoldingSource):
    def action(self, trap: Trap) -> Action:
        return min(super().action(trap), Action.RECORD)


class HoldsWithoutAWord(HoldingSource):
    """It does not say why."""

    def wait(self, timeout: float | None) -> Trap | None:
        trap = super().wait(timeout)
        return replace(trap, moved=False, words=()) if isinstance(trap, AsidChange) else trap


class ComparesAtEveryLoad(HoldingSource):
    """Of the same asid, too."""

    def take_in(self, reached: Trap) -> None:
        if isinstance(reached, AsidChange) and X86_64.asid_of(reached.new_asid) == reached.asid:
            if self.moved():
                reached = replace(reached, new_asid=reached.asid, moved=True)
                self.held.add(reached.sequence)
                self.ring.append(replace(reached, held=True))
            return
        super().take_in(reached)


EVERY: frozenset[type] = frozenset({AsidChange, Syscall, CodeHit, Access})
CODE: frozenset[type] = frozenset({CodeHit})


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Loses, "test_every_hit_once_in_order"),
        (Repeats, "test_every_hit_once_in_order"),
        (Swaps, "test_every_hit_once_in_order"),
        (StaysArmed, "test_nothing_before_arming_and_after_disarming"),
        (AddsUp, "test_a_request_replaces_the_one_before"),
        (HoldsForEver, "test_a_hold_has_a_limit_where_nobody_waits_for_traps"),
        (HoldsTheClosed, "test_closing_lets_a_held_guest_go_and_another_reader_can_come"),
        (CountsNothing, "test_a_hold_has_a_limit_and_traps_go_on"),
        (TakesAnything, "test_what_cannot_be_done_is_refused_in_a_sentence"),
        (SaysNothingAtTheEnd, "test_the_guest_ends_while_its_traps_are_waited_for"),
        (PassesFences, "test_nothing_passes_a_fence"),
        (Loses, "test_a_slow_reader_loses_nothing_that_is_held"),
        (HoldsTheClosed, "test_a_trap_that_nobody_took_is_gone_with_its_reader"),
    ],
)
def test_a_source_that_breaks_the_contract_is_found(kind: type[HoldingSource], check: str) -> None:
    found_by(check, kind, CODE)


_SETTLED = "test_what_is_settled_is_no_trap"
_WORDS = "test_a_word_that_moves_is_told_at_the_next_asid_change"


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (TrapsTheSettled, _SETTLED),
        (SettlesForEver, _SETTLED),
        (MissesCalls, _SETTLED),
        (MissesChanges, _SETTLED),
        (RecordsOnly, _SETTLED),
        (IgnoresPending, _SETTLED),
        (IgnoresFlags, "test_system_calls_by_their_flags"),
        (TakesFlagsForNone, "test_system_calls_by_their_flags"),
        (TellsAtEachChange, _WORDS),
        (TellsItsOwnAddresses, _WORDS),
        (MissesChanges, _WORDS),
        (RecordsOnly, _WORDS),
        (HoldsWithoutAWord, _WORDS),
        (ComparesAtEveryLoad, _WORDS),
    ],
)
def test_a_source_that_breaks_what_is_said_of_asids_is_found(kind: type[HoldingSource], check: str) -> None:
    found_by(check, kind, EVERY)


def found_by(check: str, kind: type[HoldingSource], supports: frozenset[type]) -> None:
    """A check passes the good source, and not this one."""

    def run(source: type[HoldingSource]) -> None:
        fake = machine()

        class Guest(FakeGuest):
            def __init__(self, of: FakeMachine) -> None:
                super().__init__(of, runs=PLACED)
                self.offers = (FakeOffer(self, "hold", supports, source=source),)

        guest = Guest(fake)
        subject = subject_of(fake, patience=0.6, opened=Guest)
        opened = guest.offers[0].open(X86_64, supports, subject.hold)
        if check.startswith("test_the_guest_ends"):
            opened.close()
        code = frozenset(one.address for one in subject.functions)
        wanted = {
            "subject": subject,
            "mortal": subject,
            "guest": guest,
            "source": opened,
            "code": code,
            "mode": "hold",
            "fenced": False,
        }
        method = getattr(CHECKS, check)
        names = method.__func__.__code__.co_varnames[1 : method.__func__.__code__.co_argcount]
        try:
            method(**{name: wanted[name] for name in names})
        finally:
            fake.end()

    run(HoldingSource)
    with pytest.raises((AssertionError, pytest.fail.Exception, GuestGone)):
        run(kind)


# -- injected faults


def test_faults_are_where_they_were_put() -> None:
    memory = FakeMemory(FakeGuest(machine()), [Run(0, 0, RAM)])
    faults = Faults(pages={2})
    faulty = FaultyMemory(memory, faults)
    assert faulty.read(0, 2 * PAGE_SIZE) == memory.read(0, 2 * PAGE_SIZE)
    with pytest.raises(MemoryFault) as caught:
        faulty.read(PAGE_SIZE + 5, PAGE_SIZE)
    assert caught.value.address == 2 * PAGE_SIZE
    with pytest.raises(MemoryFault) as caught:
        faulty.read(2 * PAGE_SIZE + 8, 8)
    assert caught.value.address == 2 * PAGE_SIZE + 8
    with pytest.raises(MemoryFault) as caught:
        faulty.read(0x10000, 1 << 70)
    assert caught.value.address == RAM
    assert faults.reads == 4
    faults.pages = ()
    faults.period = 3
    failed = [number for number in range(faults.reads, faults.reads + 9) if _fails(faulty)]
    assert failed == [5, 8, 11]
    faults.period, faults.after = 0, faults.reads + 2
    assert [_fails(faulty) for _ in range(4)] == [False, False, True, True]
    faults.gone = True
    with pytest.raises(GuestGone):
        faulty.read(0, 1)


def _fails(memory: FaultyMemory) -> bool:
    try:
        memory.read(0, 8)
    except MemoryFault:
        return True
    return False
