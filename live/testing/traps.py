"""Checks of a `live.core.traps.TrapSource`, in each of the modes that a guest offers."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from live.arch import architecture
from live.core.errors import TargetError
from live.core.hypervisor import Guest
from live.core.memory import GuestPhysical, GuestVirtual
from live.core.traps import (
    Access,
    Action,
    AsidChange,
    CodeHit,
    Syscall,
    Trap,
    TrapCounters,
    TrapRequest,
    TrapSource,
    Watchpoint,
    Word,
)
from live.testing.capabilities import CapabilityContract, needed
from live.testing.sentences import check_error, check_sentence
from live.testing.subject import Function, Subject, Wait

LONG = 4.0
"""A hold of so many times the patience never runs out within a check."""
_CLASSES: frozenset[type] = frozenset({AsidChange, Syscall, CodeHit, Access})
_NOWHERE = GuestVirtual(0x7FFF_0000)
_UNSUPPORTED: dict[type, Sequence[TrapRequest]] = {
    AsidChange: (
        TrapRequest(asid_changes=Action.RECORD),
        TrapRequest(unsettled_asids=Action.HOLD),
        TrapRequest(words=(Word(gpa=GuestPhysical(0x1000)),)),
    ),
    Syscall: (
        TrapRequest(syscalls=frozenset({1})),
        TrapRequest(every_syscall=Action.RECORD),
        TrapRequest(unsettled_syscalls=Action.HOLD),
    ),
    CodeHit: (TrapRequest(code=frozenset({_NOWHERE})),),
    Access: (
        TrapRequest(
            accesses=frozenset({Watchpoint(word=_NOWHERE, behind=frozenset({GuestVirtual(_NOWHERE + 64)}))})
        ),
    ),
}


def drain(
    source: TrapSource, wait: Wait, quiet: float = 0.3, *, slow: float = 0.0, patience: float = 60.0
) -> list[Trap]:
    """`arriving`, and each is resumed; ``slow``: seconds that the reader takes for each."""
    traps = []
    for trap in arriving(source, wait, quiet, patience=patience):
        traps.append(trap)
        time.sleep(slow)
        source.resume(trap)
    return traps


def arriving(source: TrapSource, wait: Wait, quiet: float = 0.3, *, patience: float = 60.0) -> Iterator[Trap]:
    """Every trap until ``wait`` has returned and nothing more comes for ``quiet`` seconds.

    ``patience``: seconds behind the end of ``wait`` after which there must be silence.
    """
    ended = threading.Event()
    over_at = math.inf
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            wait()
        except BaseException as error:  # raised again below
            failed.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=watch)
    thread.start()
    count = 0
    while True:
        was_over = ended.is_set()
        if was_over:
            over_at = min(over_at, time.monotonic())
        assert time.monotonic() < over_at + patience, f"traps without end: {count} so far"
        trap = source.wait(quiet)
        if trap is not None:
            count += 1
            yield trap
        elif was_over:
            thread.join()
            if failed:
                raise failed[0]
            return


def arrives(source: TrapSource, subject: Subject) -> Trap:
    """The next trap; it has to come."""
    trap = source.wait(subject.patience)
    assert trap is not None, f"no trap within {subject.patience:g} s"
    return trap


def functions_of(subject: Subject) -> tuple[Function, Function]:
    """The first and the last function of each process; skips without."""
    if subject.work is None or len(subject.functions) < 2:
        pytest.skip("the subject cannot make the guest execute two functions that it knows")
    return subject.functions[0], subject.functions[-1]


def code_of(subject: Subject) -> frozenset[GuestVirtual]:
    """All of its functions."""
    return frozenset(one.address for one in subject.functions)


def begin(subject: Subject, count: int) -> Wait:
    """So many processes."""
    return needed(subject.work, "the subject cannot make anything happen in the guest")(count)


def after(source: TrapSource, subject: Subject, count: int, *, slow: float = 0.0) -> list[Trap]:
    """Every trap of so many processes; each is resumed."""
    return drain(source, begin(subject, count), subject.quiet, slow=slow, patience=subject.patience)


def check_soon(wait: Wait, subject: Subject) -> None:
    """What was held goes on long before its hold would have run out."""
    started = time.monotonic()
    wait()
    took = time.monotonic() - started
    assert took < subject.patience, f"the guest was held for {took:.1f} s by a source that is closed"


def once(subject: Subject) -> int:
    """How many processes it takes for the first function to be executed exactly once."""
    first, _ = functions_of(subject)
    if first.least != first.most or first.least > 1:
        pytest.skip("how often the first function is executed is not known exactly")
    return 1 - first.least


def check_counts(subject: Subject, count: int, traps: Sequence[Trap]) -> None:
    """Each function was hit once for each process, and as often beside as was said."""
    hits = Counter(trap.pc for trap in traps if isinstance(trap, CodeHit))
    for one in subject.functions:
        assert count + one.least <= hits[one.address] <= count + one.most, (
            f"{one.address:#x} was hit {hits[one.address]} times for {count} processes"
        )
    assert hits.keys() <= code_of(subject)


def check_order(traps: Sequence[Trap]) -> None:
    """Sequences rise from trap to trap, and on each vCPU times do not fall."""
    numbers = [trap.sequence for trap in traps]
    assert numbers == sorted(set(numbers)), f"traps out of order, or one of them twice: {numbers}"
    for vcpu in {trap.vcpu for trap in traps}:
        times = [trap.time_ns for trap in traps if trap.vcpu == vcpu]
        assert times == sorted(times), f"the times of vCPU {vcpu} fall"


class TrapContract(CapabilityContract):
    """What every source of traps has to do, in each of `modes`."""

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Once for each mode."""
        if "mode" in metafunc.fixturenames:
            none = pytest.mark.skip(reason="the guest declares no offer that works: it can be polled only")
            metafunc.parametrize("mode", cls.modes or [pytest.param("none", marks=none)])

    @pytest.fixture
    def source(self, subject: Subject, guest: Guest, mode: str) -> Iterator[TrapSource]:
        """The source of one mode, for code addresses."""
        source = opened(guest, mode, frozenset({CodeHit}), subject.hold)
        try:
            yield source
        finally:
            source.close()

    @pytest.fixture
    def code(self, subject: Subject, source: TrapSource) -> frozenset[GuestVirtual]:
        """The functions that are trapped."""
        functions_of(subject)
        if CodeHit not in source.supports:
            pytest.skip("the source declares that it does not trap code addresses")
        return code_of(subject)

    def test_a_source_says_what_it_is(self, source: TrapSource, mode: str) -> None:
        """Its mode, what it can and cannot miss, and what it supports."""
        assert source.mode == mode
        assert source.description.strip()
        check_sentence(source.guarantee)
        assert source.supports, "it supports nothing"
        assert source.supports <= _CLASSES
        assert source.prefers in (CodeHit, Access)
        assert isinstance(source.holds_all, bool)
        assert source.counters == TrapCounters()

    def test_every_hit_once_in_order(
        self, subject: Subject, guest: Guest, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """None lost, none twice; counted; with registers that the architecture knows."""
        machine = architecture(guest.info.machine)
        source.arm(TrapRequest(code=code))
        traps = after(source, subject, 5)
        check_counts(subject, 5, traps)
        check_order(traps)
        assert all(trap.held for trap in traps)
        begun = ended = 0
        first, last = functions_of(subject)
        for trap in traps:
            begun += trap.pc == first.address
            ended += trap.pc == last.address
            assert ended <= begun, "a process has ended before it began"
            assert trap.registers.keys() <= set(machine.trap_registers)
            assert all(value >= 0 for value in trap.registers.values())
            assert trap.asid == machine.asid_of(trap.asid)
            machine.argument(trap.registers, 0)
        counters = source.counters
        assert (counters.delivered, counters.dropped, counters.hold_timeouts) == (len(traps), 0, 0)

    def test_nothing_before_arming_and_after_disarming(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """The empty request traps nothing."""
        assert after(source, subject, 1) == []
        source.arm(TrapRequest(code=code))
        source.arm(TrapRequest())
        assert after(source, subject, 1) == []

    def test_a_request_replaces_the_one_before(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """Nothing of it is left."""
        for one in (*functions_of(subject), functions_of(subject)[0]):
            source.arm(TrapRequest(code=frozenset({one.address})))
            assert {trap.pc for trap in after(source, subject, 2)} == {one.address}

    def test_arming_while_a_trap_is_held(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """The one that is held stays held; what is new is in force when it goes on."""
        first, last = functions_of(subject)
        source.arm(TrapRequest(code=code))
        source.arm(TrapRequest(code=frozenset({first.address})))
        wait = begin(subject, 1)
        trap = arrives(source, subject)
        assert trap.pc == first.address
        source.arm(TrapRequest(code=frozenset({last.address})))
        source.resume(trap)
        assert last.address in {trap.pc for trap in drain(source, wait, subject.quiet)}

    def test_no_trap_within_the_time(self, source: TrapSource, code: frozenset[GuestVirtual]) -> None:
        """None, and not much later."""
        source.arm(TrapRequest(code=code))
        for timeout in (0.0, 0.05):
            started = time.monotonic()
            assert source.wait(timeout) is None
            assert time.monotonic() - started < 2

    def test_resuming_twice_or_late_is_harmless(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """What is not held (any more) cannot be resumed, and that is nothing."""
        first, _ = functions_of(subject)
        source.arm(TrapRequest(code=frozenset({first.address})))
        wait = begin(subject, 1)
        trap = arrives(source, subject)
        source.resume(trap)
        source.resume(trap, news=False)
        drain(source, wait, subject.quiet)
        source.resume(trap)
        assert after(source, subject, 1) != []

    def test_closing_lets_a_held_guest_go_and_another_reader_can_come(
        self, subject: Subject, guest: Guest, source: TrapSource, code: frozenset[GuestVirtual], mode: str
    ) -> None:
        """Closed twice, with a trap held; the next reader starts with nothing armed."""
        first, last = functions_of(subject)
        source.close()
        source = opened(guest, mode, frozenset({CodeHit}), LONG * subject.patience)
        source.arm(TrapRequest(code=frozenset({first.address})))
        wait = begin(subject, 1)
        arrives(source, subject)
        source.close()
        source.close()
        check_soon(wait, subject)
        again = opened(guest, mode, frozenset({CodeHit}), subject.hold)
        try:
            assert after(again, subject, 1) == []
            again.arm(TrapRequest(code=frozenset({last.address})))
            assert {trap.pc for trap in after(again, subject, 1)} == {last.address}
        finally:
            again.close()

    def test_nothing_passes_a_fence(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """Where the source has no fences the vCPU stands: to the reader it is the same."""
        if not subject.fences:
            pytest.skip("the subject knows no fences")
        first, last = functions_of(subject)
        source.arm(TrapRequest(code=code, fences=subject.fences, entries=subject.entries))
        wait = begin(subject, 1)
        trap = arrives(source, subject)
        assert trap.pc == first.address
        assert trap.held
        assert source.wait(min(0.3, subject.hold / 4)) is None, "a trap behind the fence"
        source.resume(trap)
        rest = drain(source, wait, subject.quiet)
        assert last.address in {trap.pc for trap in rest}
        assert all(trap.held for trap in rest)
        assert source.counters.hold_timeouts == 0

    @pytest.mark.parametrize("fenced", [False, True], ids=["held", "fenced"])
    def test_a_hold_has_a_limit_and_traps_go_on(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual], fenced: bool
    ) -> None:
        """Nobody resumes: counted once, and the guest goes on."""
        if fenced and not subject.fences:
            pytest.skip("the subject knows no fences")
        first, _ = functions_of(subject)
        fences = subject.fences if fenced else frozenset()
        entries = subject.entries if fenced else frozenset()
        source.arm(TrapRequest(code=frozenset({first.address}), fences=fences, entries=entries))
        wait = begin(subject, once(subject))
        trap = arrives(source, subject)
        assert trap.held
        wait()
        assert source.counters.hold_timeouts == 1
        assert source.counters.held_ns > subject.hold * 0.9e9
        source.resume(trap)
        again = after(source, subject, 1)
        assert len(again) == 1 + first.least
        assert all(trap.held for trap in again)

    def test_a_hold_has_a_limit_where_nobody_waits_for_traps(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """As in a callback that takes its time, behind the trap that it is called for."""
        first, _ = functions_of(subject)
        count = once(subject)
        time.sleep(1.5 * subject.hold)  # nor is anything made of it that nothing happens
        source.arm(TrapRequest(code=frozenset({first.address})))
        begin(subject, count)()
        assert source.counters.hold_timeouts == 1
        drain(source, lambda: None, subject.quiet)  # what is not waited for any more
        again = after(source, subject, 1)
        assert len(again) == 1 + first.least
        assert all(trap.held for trap in again)

    def test_what_cannot_be_done_is_refused_in_a_sentence(self, source: TrapSource, subject: Subject) -> None:
        """`TargetError`, and the source is as good as before."""
        for kind in sorted(_CLASSES - source.supports, key=lambda one: one.__name__):
            for request in _UNSUPPORTED[kind]:
                with pytest.raises(TargetError) as caught:
                    source.arm(request)
                check_error(caught.value)
        source.arm(TrapRequest())
        assert source.wait(0) is None
        if CodeHit in source.supports and subject.work is not None and len(subject.functions) > 1:
            source.arm(TrapRequest(code=code_of(subject)))
            check_counts(subject, 1, after(source, subject, 1))


def opened(guest: Guest, mode: str, kinds: frozenset[type], hold: float) -> TrapSource:
    """The source of a mode; it can be had."""
    offers = {offer.mode: offer for offer in guest.offers}
    assert mode in offers, f"the mode {mode} is listed in `modes`, and the guest does not offer it"
    return offers[mode].open(architecture(guest.info.machine), kinds, hold)
