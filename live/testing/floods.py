"""Checks of a trap source that are about many traps at once, and about kinds other than code addresses."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from live.arch import architecture
from live.core.hypervisor import Guest
from live.core.memory import Asid, GuestVirtual
from live.core.traps import (
    Abi,
    Access,
    Action,
    AsidChange,
    CallFlags,
    CodeHit,
    Syscall,
    Trap,
    TrapRequest,
    TrapSource,
)
from live.testing.subject import Subject
from live.testing.traps import (
    LONG,
    TrapContract,
    after,
    arriving,
    begin,
    check_counts,
    check_order,
    check_soon,
    code_of,
    drain,
    functions_of,
    once,
    opened,
)

_MANY = 10
_NUMBERS = 1024
"""System calls that a request can list."""


class FloodContract(TrapContract):
    """More than the reader can take, and what else there is to trap."""

    def test_a_slow_reader_loses_nothing_that_is_held(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """It holds the guest up, and that is all."""
        source.arm(TrapRequest(code=code))
        traps = after(source, subject, _MANY, slow=0.01)
        check_counts(subject, _MANY, traps)
        check_order(traps)
        assert source.counters.dropped == source.counters.hold_timeouts == 0

    def test_what_is_only_recorded_holds_nobody(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """The guest runs to the end of its work though nobody reads; then all is there, or counted."""
        source.arm(TrapRequest(code=code, code_action=Action.RECORD))
        if any(trap.held for trap in after(source, subject, 1)):
            pytest.skip("the source holds where it is asked to record, and says so of each trap")
        before = source.counters
        begin(subject, _MANY)()  # nobody reads
        traps = drain(source, lambda: None, subject.quiet)
        check_order(traps)
        if source.counters.dropped == before.dropped:
            check_counts(subject, _MANY, traps)
        assert not any(trap.held for trap in traps)
        assert source.counters.delivered == before.delivered + len(traps)
        assert source.counters.hold_timeouts == 0

    def test_a_flood_of_what_is_recorded_drops_nothing_that_is_held(
        self, subject: Subject, source: TrapSource, code: frozenset[GuestVirtual]
    ) -> None:
        """Every system call is recorded, and the reader sleeps; code addresses are held all the same."""
        if Syscall not in source.supports:
            pytest.skip("the source declares that it does not trap system calls")
        source.arm(TrapRequest(code=code, every_syscall=Action.RECORD))
        wait = begin(subject, _MANY)
        time.sleep(subject.hold / 4)
        traps = drain(source, wait, subject.quiet)
        check_order(traps)
        held = [trap for trap in traps if isinstance(trap, CodeHit)]
        check_counts(subject, _MANY, held)
        assert all(trap.held for trap in held)
        calls = [trap for trap in traps if isinstance(trap, Syscall)]
        assert calls or source.counters.dropped
        assert not any(trap.held for trap in calls)
        assert all(trap.number >= 0 for trap in calls)
        assert source.counters.hold_timeouts == 0

    def test_asid_changes(self, subject: Subject, source: TrapSource) -> None:
        """Of another asid each."""
        if AsidChange not in source.supports:
            pytest.skip("the source declares that it does not trap asid changes")
        source.arm(TrapRequest(asid_changes=Action.RECORD))
        traps = after(source, subject, 3)
        check_order(traps)
        assert traps, "processes began and ended, and the asid never changed"
        for trap in traps:
            assert isinstance(trap, AsidChange)
            assert trap.new_asid != trap.asid
            assert not trap.held

    def test_what_is_settled_is_no_trap(self, subject: Subject, source: TrapSource) -> None:
        """Every other asid is held, at the change to it and at its system calls, until it is settled."""
        if not {Syscall, AsidChange} <= source.supports:
            pytest.skip("the source declares that it does not trap system calls, or asid changes")
        request = TrapRequest(unsettled_asids=Action.HOLD, unsettled_syscalls=Action.HOLD)
        settled: set[Asid] = set()
        source.arm(request)
        wait = begin(subject, 3)
        seen = []
        for trap in arriving(source, wait, subject.quiet):
            seen.append(trap)
            assert trap.held
            asid = trap.new_asid if isinstance(trap, AsidChange) else trap.asid
            assert asid not in settled, f"the asid {asid:#x} was settled before"
            if isinstance(trap, Syscall):  # what makes a call is known from then on
                settled.add(asid)
                source.arm(replace(request, settled=frozenset(settled)))
            source.resume(trap)
        check_order(seen)
        assert {type(trap) for trap in seen} == {AsidChange, Syscall}, "processes began and ended unseen"
        source.arm(request)
        assert settled & {trap.asid for trap in after(source, subject, 3)}, "nothing is settled any more"
        both = frozenset(settled)
        source.arm(replace(request, settled=both, pending=both))
        assert both & {trap.asid for trap in after(source, subject, 3)}, "what is pending is not settled"
        assert source.counters.hold_timeouts == 0

    def test_a_word_that_moves_is_told_at_the_next_asid_change(
        self, subject: Subject, source: TrapSource
    ) -> None:
        """One that counts processes; each time once."""
        if AsidChange not in source.supports:
            pytest.skip("the source declares that it does not trap asid changes")
        if not subject.words:
            pytest.skip("the subject knows no words that count its processes")
        source.arm(TrapRequest(words=subject.words))
        traps = after(source, subject, 3)
        check_order(traps)
        assert traps, "processes began and ended, and no word has moved"
        for trap in traps:
            assert isinstance(trap, AsidChange)
            assert trap.held
            assert trap.moved
            assert trap.new_asid != trap.asid
            assert set(trap.words) <= {word.gpa for word in subject.words}
        source.arm(TrapRequest(words=subject.words, asid_changes=Action.RECORD))
        assert {trap.moved for trap in after(source, subject, 3) if isinstance(trap, AsidChange)} == {
            True,
            False,
        }, "a word that has moved is told of again at each asid change, or not at all"

    def test_system_calls_by_number(self, subject: Subject, source: TrapSource) -> None:
        """Of those that the source knows, a system call is trapped by its number."""
        if Syscall not in source.supports:
            pytest.skip("the source declares that it does not trap system calls")
        source.arm(TrapRequest(every_syscall=Action.RECORD))
        calls = [trap for trap in after(source, subject, 1) if isinstance(trap, Syscall)]
        assert calls, "processes began and ended without a system call"
        number = max({trap.number for trap in calls if trap.number < _NUMBERS})
        source.arm(TrapRequest(syscalls=frozenset({number})))
        again = after(source, subject, 1)
        assert again, f"the system call {number} was made before, and now it is not"
        assert {trap.number for trap in again if isinstance(trap, Syscall)} == {number}
        assert all(trap.held for trap in again)

    def test_system_calls_by_their_flags(self, subject: Subject, guest: Guest, source: TrapSource) -> None:
        """Of a listed call those are left alone whose first argument has none of the bits."""
        if Syscall not in source.supports:
            pytest.skip("the source declares that it does not trap system calls")
        machine = architecture(guest.info.machine)

        def first(trap: Trap) -> int:
            assert isinstance(trap, Syscall)
            return machine.call_argument(trap.registers, trap.abi, 0)

        source.arm(TrapRequest(every_syscall=Action.HOLD))
        calls = [trap for trap in after(source, subject, 3) if isinstance(trap, Syscall)]
        numbers = {trap.number for trap in calls if first(trap) and trap.abi is Abi.NATIVE}
        if not any(number < _NUMBERS for number in numbers):
            pytest.skip("the guest makes no system call with an argument")
        number = max(number for number in numbers if number < _NUMBERS)
        for bits in (0, (1 << 64) - 1):
            flags = CallFlags(number=number, abi=Abi.NATIVE, bits=bits)
            source.arm(TrapRequest(syscalls=frozenset({number}), call_flags=frozenset({flags})))
            again = after(source, subject, 3)
            assert bool(again) == bool(bits), f"the system call {number} with one of the bits {bits:#x}"
            assert all(first(trap) for trap in again)

    def test_accesses(self, subject: Subject, guest: Guest, mode: str) -> None:
        """The vCPU stands behind the instruction that has touched the word."""
        if not subject.accesses:
            pytest.skip("the subject knows no words that the guest touches")
        source = opened(guest, mode, frozenset({Access}), subject.hold)
        try:
            if Access not in source.supports:
                pytest.skip("the source declares that it does not trap accesses to data")
            source.arm(TrapRequest(accesses=subject.accesses))
            traps = after(source, subject, 3)
            behind = {one.word: one.behind for one in subject.accesses}
            assert traps, "the words were not touched"
            check_order(traps)
            for trap in traps:
                assert isinstance(trap, Access)
                assert trap.held
                assert trap.pc in behind[trap.address]
        finally:
            source.close()

    def test_a_trap_that_nobody_took_is_gone_with_its_reader(
        self, subject: Subject, guest: Guest, source: TrapSource, code: frozenset[GuestVirtual], mode: str
    ) -> None:
        """Closed while one is held that was not even read."""
        first, _ = functions_of(subject)
        source.close()
        source = opened(guest, mode, frozenset({CodeHit}), LONG * subject.patience)
        source.arm(TrapRequest(code=frozenset({first.address})))
        wait = begin(subject, once(subject))
        time.sleep(subject.hold / 4)
        source.close()
        check_soon(wait, subject)
        again = opened(guest, mode, frozenset({CodeHit}), subject.hold)
        try:
            again.arm(TrapRequest(code=code_of(subject)))
            check_counts(subject, 1, after(again, subject, 1))
        finally:
            again.close()
