"""Checks of a `live.core.hypervisor.Guest`: what it declares, it has; what it has not, it declares."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeVar

import pytest

from live.arch import architecture
from live.core.errors import GuestGone, PseError, TargetError
from live.core.hypervisor import Guest, Notice, Notices, Pauses, RegisterReader, UnplacedRam
from live.core.memory import MemoryReader, Run, Segment
from live.core.traps import Access, AsidChange, CodeHit, Syscall
from live.testing.memory import MemoryContract, agree, check_exact
from live.testing.sentences import check_error, check_sentence
from live.testing.subject import Subject

_T = TypeVar("_T")
_KINDS: tuple[frozenset[type], ...] = (
    frozenset(),
    frozenset({CodeHit}),
    frozenset({Access}),
    frozenset({CodeHit, Access, AsidChange, Syscall}),
)
_LIMIT_S, _SHORT_S = 0.3, 0.2
RESERVED = frozenset({"auto", "poll"})
"""Modes that no offer may be called: they mean something to ``--mode`` already."""


def needed(what: _T | None, why: str) -> _T:
    """What a check needs; without it the check is skipped, because the guest or the subject declares so."""
    if what is None:
        pytest.skip(why)
    return what


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """The condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


def registers_of(guest: Guest) -> RegisterReader:
    """Its registers; skips."""
    return needed(guest.registers, "the guest declares no registers")


def pauses_of(guest: Guest) -> Pauses:
    """Its pauses; skips."""
    return needed(guest.pauses, "the guest declares no pauses")


def notices_of(guest: Guest) -> Notices:
    """Its notices; skips."""
    return needed(guest.notices, "the guest declares no notices")


def unplaced_of(guest: Guest) -> UnplacedRam:
    """Its unplaced RAM; skips."""
    return needed(guest.unplaced, "the guest's RAM is placed: it declares none to be placed")


class CapabilityContract(MemoryContract):
    """What every guest has to do; override the fixture `subject`."""

    modes: ClassVar[Sequence[str]] = ()
    """Of the guest's offers those that it can be trapped by, in order; `live.testing.TrapContract`."""
    refused: ClassVar[Sequence[str]] = ()
    """Of its offers those that it refuses, in order, with what to do about it."""

    @pytest.fixture
    def subject(self) -> Subject:
        """How to attach to the guest."""
        raise NotImplementedError("override the fixture `subject`: it gives a live.testing.Subject")

    @pytest.fixture
    def guest(self, subject: Subject) -> Iterator[Guest]:
        """The guest, attached; closed behind the check."""
        guest = subject.open()
        try:
            yield guest
        finally:
            guest.close()
            if subject.restore is not None:
                subject.restore()

    @pytest.fixture
    def memory(self, guest: Guest) -> MemoryReader:
        """The guest's own."""
        return guest.memory

    def test_a_guest_says_what_it_is(self, guest: Guest) -> None:
        """Its name, its machine, and sentences about how it is attached."""
        info = guest.info
        assert info.name.strip(), "it has no name"
        assert architecture(info.machine).name == info.machine
        assert min(info.pid, info.memory, info.vcpus) >= 0
        for note in guest.notes:
            check_sentence(note)

    def test_a_guest_lives_until_it_has_ended(self, guest: Guest) -> None:
        """And the error that says so afterwards can be had at any time, without an end."""
        assert guest.alive()
        assert isinstance(guest.gone(), GuestGone)
        check_error(guest.gone())
        assert guest.alive()

    def test_closing_twice(self, subject: Subject, guest: Guest) -> None:
        """The guest can be attached to again."""
        guest.close()
        guest.close()
        again = subject.open()
        assert again.alive()
        check_exact(again.memory, again.memory.segments[0].start, 8)
        again.close()

    def test_what_is_closed_says_so_and_never_crashes(self, guest: Guest) -> None:
        """Memory is gone; nothing else raises what the user may not be shown."""
        memory, at = guest.memory, guest.memory.segments[0].start
        flat = memory.flat
        registers, pauses, notices, unplaced = guest.registers, guest.pauses, guest.notices, guest.unplaced
        guest.close()
        with pytest.raises(GuestGone) as caught:
            memory.read(at, 8)
        check_error(caught.value)
        with pytest.raises(GuestGone):
            guest.memory.read(at, 8)
        calls: list[Callable[[], object]] = [memory.populated, memory.refresh, memory.rest]
        calls += [guest.alive, guest.gone, guest.keep_memory_only, guest.close]
        if registers is not None:
            calls.append(lambda: registers.read(registers.vcpus[0]))
        if pauses is not None:
            calls += [pauses.paused, lambda: pauses.standing().__enter__()]
        if notices is not None:
            calls.append(notices.take)
        if unplaced is not None:
            runs = [Run(0, 0, unplaced.size)]
            calls += [lambda: unplaced.placed(runs).read(0, 8), lambda: unplaced.place(runs)]
        for call in calls:
            with contextlib.suppress(PseError):
                call()
        if flat is not None:
            with contextlib.suppress(ValueError):  # a view that was released
                bytes(flat[at : at + 8])

    def test_memory_stays_when_all_else_is_left_to_others(self, subject: Subject, guest: Guest) -> None:
        """Somebody else can have the rest meanwhile."""
        guest.keep_memory_only()
        guest.keep_memory_only()
        start = guest.memory.segments[0].start
        check_exact(guest.memory, start, 4096)
        assert guest.alive()
        other = subject.open()
        try:
            if other.registers is not None:
                assert other.registers.read(other.registers.vcpus[0])
            agree(
                lambda: bytes(guest.memory.read(start, 4096)),
                lambda: bytes(other.memory.read(start, 4096)),
                "the same memory through two readers",
            )
        finally:
            other.close()
        check_exact(guest.memory, start, 4096)

    def test_what_the_guest_writes_is_seen(self, subject: Subject, guest: Guest) -> None:
        """From the next `refresh` on."""
        put = needed(subject.put, "the subject does not write into guest RAM")
        for text in (b"pse contract, one", b"pse contract, two"):
            gpa = put(text)
            guest.memory.refresh()
            assert bytes(guest.memory.read(gpa, len(text))) == text
            if guest.memory.flat is not None:
                assert bytes(guest.memory.flat[gpa : gpa + len(text)]) == text

    def test_registers(self, guest: Guest) -> None:
        """Of every vCPU, by lower-case name, unsigned; those that an architecture is asked for."""
        registers, machine = registers_of(guest), architecture(guest.info.machine)
        assert list(registers.vcpus) == sorted(set(registers.vcpus)), "vCPUs are not in order, or there twice"
        assert registers.vcpus, "there is no vCPU"
        for vcpu in registers.vcpus:
            values = registers.read(vcpu)
            assert {machine.pc, machine.page_root} <= values.keys()
            for name, value in values.items():
                assert re.fullmatch(r"[a-z][a-z0-9_]*", name), f"{name!r} is no lower-case name"
                assert value >= 0, f"{name} is negative"
            assert isinstance(machine.roots(values), frozenset)

    def test_a_pause_stands_and_goes_on(self, subject: Subject, guest: Guest) -> None:
        """Nothing happens in the guest meanwhile; a pause within a pause is none."""
        pauses = pauses_of(guest)
        assert not pauses.paused()
        with pauses.standing() as ours:
            assert ours is True
            assert pauses.paused()
            with pauses.standing() as nested:
                assert nested is False
            assert pauses.paused(), "the inner pause let the guest go on"
            wait = subject.work(1) if subject.work is not None else None
            data = [check_exact(guest.memory, one.start, min(one.length, 1 << 16)) for one in _all(guest)]
            time.sleep(_SHORT_S)
            again = [check_exact(guest.memory, one.start, min(one.length, 1 << 16)) for one in _all(guest)]
            assert data == again, "the guest's memory changed while it stood"
        assert not pauses.paused()
        if wait is not None:
            wait()

    def test_a_pause_ends_with_an_error_too(self, guest: Guest) -> None:
        """Whatever is raised within."""
        pauses = pauses_of(guest)
        with pytest.raises(KeyError), pauses.standing():
            raise KeyError
        assert not pauses.paused()

    def test_a_pause_of_somebody_else_stays(self, subject: Subject, guest: Guest) -> None:
        """We neither end it nor take it for ours."""
        pauses = pauses_of(guest)
        pause = needed(subject.pause, "the subject does not pause the guest from outside")
        resume = needed(subject.resume, "the subject does not resume the guest from outside")
        pause()
        eventually(pauses.paused, subject.patience, "a pause from outside shows")
        try:
            with pauses.standing() as ours:
                assert ours is False
                assert pauses.paused()
            assert pauses.paused(), "the guest was let go, and somebody else had paused it"
            with pauses.standing(_LIMIT_S) as ours:
                time.sleep(2 * _LIMIT_S)
            assert ours is False
            assert pauses.paused(), "the limit let the guest go, and somebody else had paused it"
        finally:
            resume()
        eventually(lambda: not pauses.paused(), subject.patience, "a resumption from outside shows")

    def test_a_pause_has_a_limit(self, subject: Subject, guest: Guest) -> None:
        """If we hang within, the guest goes on; it is then not stopped for good, nor by the way out."""
        pauses = pauses_of(guest)
        with pauses.standing(_LIMIT_S) as ours:
            assert ours is True
            assert pauses.paused()
            time.sleep(_LIMIT_S + subject.hold)  # we hang: the adapter is not asked for anything meanwhile
            eventually(lambda: not pauses.paused(), subject.patience, "the guest goes on at the limit")
        assert not pauses.paused()
        # Whether more pauses can be had now is up to the adapter; it has to say so.
        try:
            with pauses.standing(_LIMIT_S):
                pass
        except TargetError as error:
            check_error(error)
        assert not pauses.paused()

    def test_notices(self, subject: Subject, guest: Guest) -> None:
        """Each once, oldest first."""
        notices = notices_of(guest)
        assert all(isinstance(one, Notice) for one in notices.take())
        if subject.pause is None or subject.resume is None:
            pytest.skip("the subject does not pause the guest from outside")
        notices.take()
        subject.pause()
        subject.resume()
        seen: list[Notice] = []

        def both() -> bool:
            seen.extend(notices.take())
            return Notice.RESUMED in seen

        eventually(both, subject.patience, "a pause and its end are noticed")
        assert seen == [Notice.STOPPED, Notice.RESUMED]
        assert list(notices.take()) == []

    def test_unplaced_ram(self, guest: Guest) -> None:
        """One run from gpa 0, until it is placed; to try costs nothing; it can be placed again."""
        ram = unplaced_of(guest)
        assert ram.size > 0
        assert list(guest.memory.segments) == [Segment(start=0, length=ram.size)]
        half = ram.size // 2 & ~0xFFF
        swapped = [Run(0, half, ram.size - half), Run(1 << 33, 0, half)]
        tried = ram.placed(swapped)
        _check_placed(tried, guest.memory, swapped)
        assert list(guest.memory.segments) == [Segment(start=0, length=ram.size)], "to try has placed it"
        plain = [bytes(guest.memory.read(half, 4096)), bytes(guest.memory.read(0, 4096))]
        ram.place(swapped)
        _check_placed(guest.memory, tried, [Run(run.start, run.start, run.length) for run in swapped])
        agree(
            lambda: bytes(guest.memory.read(0, 4096)), lambda: bytes(tried.read(0, 4096)), "tried and placed"
        )
        ram.place([Run(0, 0, ram.size)])
        assert list(guest.memory.segments) == [Segment(start=0, length=ram.size)]
        assert len(plain[0]) == len(plain[1]) == 4096

    def test_offers(self, guest: Guest) -> None:
        """Their modes are names, each once; those of `modes` and `refused`, and no other."""
        names = [offer.mode for offer in guest.offers]
        assert len(names) == len(set(names)), f"a mode is offered twice: {names}"
        assert not RESERVED & set(names)
        for offer in guest.offers:
            assert re.fullmatch(r"[a-z][a-z0-9_-]*", offer.mode), f"{offer.mode!r} is no name for --mode"
            for kinds in _KINDS:
                reason = offer.reluctance(kinds)
                if reason is not None:
                    check_sentence(reason)
        assert [name for name in names if name not in self.refused] == list(self.modes), (
            "list the offers that work in `modes`, so that they are checked, and the others in `refused`"
        )
        assert [name for name in names if name in self.refused] == list(self.refused)

    def test_an_offer_that_cannot_be_had_says_why(self, guest: Guest) -> None:
        """In a sentence, and the guest runs on."""
        if not self.refused:
            pytest.skip("the guest refuses none of its offers")
        for offer in guest.offers:
            if offer.mode in self.refused:
                for kinds in _KINDS:
                    with pytest.raises(TargetError) as caught:
                        offer.open(architecture(guest.info.machine), kinds, 1.0)
                    check_error(caught.value)
        assert guest.alive()


def _all(guest: Guest) -> Sequence[Segment]:
    return guest.memory.segments


def _check_placed(memory: MemoryReader, source: MemoryReader, runs: Sequence[Run]) -> None:
    """``memory`` has the bytes of ``source`` where the runs say."""
    assert [(one.start, one.end) for one in memory.segments] == [
        (run.start, run.start + run.length) for run in runs
    ]
    for run in runs:
        length = min(run.length, 4096)
        for at in (0, run.length - length):
            agree(
                lambda at=at, run=run, length=length: bytes(memory.read(run.start + at, length)),  # type: ignore[misc]
                lambda at=at, run=run, length=length: bytes(source.read(run.offset + at, length)),  # type: ignore[misc]
                f"RAM at {run.start + at:#x}, and where it came from",
            )
