"""The adapter of PANDA over the fake: when there is a machine; what its callbacks trap, hold and let go."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import GuestGone, MemoryFault, TargetError
from live.core.memory import Asid, GuestPhysical, GuestVirtual, Segment
from live.core.traps import Abi, Action, AsidChange, CallFlags, Syscall, TrapRequest, Watchpoint, Word
from live.hypervisors import registry
from live.hypervisors.panda import PandaGuest, guest
from live.hypervisors.panda.holding import RING
from live.testing import drain
from live.testing.sentences import check_error
from live.watch.monitor import Monitor
from live.watch.session import Session
from tests.hypervisors.panda_fake import OUTSIDE, FakePanda
from tests.hypervisors.panda_runs import KINDS, PATIENCE, Running, opened
from tests.toy.system import TOY
from tests.toy.world import World, page_of

A, B, C = Asid(0x10000), Asid(0x20000), Asid(0x30000)
"""The first is in force when the fake starts."""
WORD = Word(gpa=GuestPhysical(0x200000))
HOLD, RECORD = Action.HOLD, Action.RECORD
LISTED = "pse_all_sys_enter_0"


def arrives(source):
    trap = source.wait(PATIENCE)
    assert trap is not None
    return trap


def seen(source, panda):
    """Everything up to now, each resumed, as (number or asid, held)."""
    return [
        (trap.number if isinstance(trap, Syscall) else trap.new_asid, trap.held)
        for trap in drain(source, panda.done(), 0.02)
    ]


# -- the machine


def test_nothing_is_asked_of_a_machine_that_is_not_there():
    panda = FakePanda()
    early = PandaGuest(panda, patience=0.1)
    assert early.alive()
    assert (early.info.memory, early.info.vcpus) == (0, 0)
    for call in (
        lambda: early.memory,
        lambda: early.open(X86_64, KINDS, 1.0),
        lambda: early.registers.vcpus,
        lambda: early.supports,
    ):
        with pytest.raises(TargetError, match=r"call panda.run\(\)") as caught:
            call()
        check_error(caught.value)
    with Running(panda):
        assert early.memory.read(0x200000, 8) == bytes(8)
        assert (early.info.memory, early.info.vcpus, early.info.machine) == (4 << 20, 1, "x86_64")
        assert early.supports == KINDS
        assert early.notes == ()
    assert early.supports == KINDS


def test_the_reader_waits_for_the_run():
    panda = FakePanda()
    made = guest(panda)
    found = []
    reader = threading.Thread(target=lambda: found.append(made.memory.read(0x200000, 4)))
    reader.start()
    time.sleep(0.1)
    assert not found
    with Running(panda):
        reader.join(PATIENCE)
    assert found == [bytes(4)]


def test_a_guest_is_of_one_run():
    panda = FakePanda()
    first = guest(panda)
    with Running(panda):
        first.memory.read(0x200000, 1)
    assert not first.alive()
    with pytest.raises(GuestGone, match="has ended"):
        first.memory.read(0x200000, 1)
    second = guest(panda)
    with Running(panda):
        assert second.memory.read(0x200000, 1) == b"\0"
        assert second.alive()
        assert not first.alive()
        panda.load_root(B)
        panda.load_root(A)
        panda.done()()
        assert not any(one.enabled for one in panda.asid_list)  # what pandare has not disabled
        source = second.open(X86_64, KINDS, PATIENCE)
        source.arm(TrapRequest(asid_changes=HOLD))
        panda.load_root(B)
        assert seen(source, panda) == [(B, True)]
        source.close()
        panda.load_root(C)
        panda.done()()
        assert not any(one.enabled for one in panda.asid_list)
        with pytest.raises(GuestGone):
            first.open(X86_64, KINDS, 1.0)


def test_a_run_that_nobody_saw_is_over_all_the_same():
    panda = FakePanda()
    unused = guest(panda)
    with Running(panda):
        pass
    assert not unused.alive()


def test_ram_is_where_a_pc_has_it():
    low = [Segment(start=0, length=0xA0000)]
    for size, split, expected in (
        (4 << 20, 4 << 20, [(0x100000, 3 << 20)]),
        (8 << 20, 3 << 20, [(0x100000, 2 << 20), (1 << 32, 5 << 20)]),
        (8 << 20, 2 << 20, [(0x100000, 1 << 20), (1 << 32, 6 << 20)]),
        (8 << 20, 7 << 20, [(0x100000, 6 << 20), (1 << 32, 1 << 20)]),
    ):
        panda = FakePanda(ram=bytearray(size), split=split)
        with Running(panda):
            memory = guest(panda).memory
            assert list(memory.segments) == low + [Segment(start=at, length=n) for at, n in expected]


def test_what_lies_behind_the_end_of_ram_is_not_copied():
    """PANDA would: it looks at the first address only."""
    panda = FakePanda()
    with Running(panda):
        assert OUTSIDE in panda.physical_memory_read((4 << 20) - 16, 200)
        memory = guest(panda).memory
        for at, length, bad in (
            ((4 << 20) - 16, 200, 4 << 20),
            (0x9FFF0, 0x100000, 0xA0000),
            (0xA0000, 1, 0xA0000),
        ):
            with pytest.raises(MemoryFault) as caught:
                memory.read(at, length)
            assert caught.value.address == bad


def test_another_machine_is_refused():
    with pytest.raises(TargetError, match="mips") as caught:
        PandaGuest(FakePanda("mips"))
    check_error(caught.value)
    panda = FakePanda(ram=bytearray(8 << 20), split=3 << 20)
    panda._ram_offset, real = (lambda gpa: None if gpa >= 1 << 32 else real(gpa)), panda._ram_offset
    with Running(panda), pytest.raises(TargetError, match="default machine") as caught:
        _ = guest(panda).memory
    check_error(caught.value)


def test_it_is_no_scheme():
    """Nothing could be attached to by a name."""
    assert "panda" not in registry.schemes()


def test_registers_are_read_of_every_vcpu():
    panda = FakePanda(vcpus=3)
    with Running(panda):
        made = guest(panda)
        assert list(made.registers.vcpus) == [0, 1, 2]
        panda.cpus[1].env_ptr.cr[3] = 0xABC000
        values = made.registers.read(1)
        assert values["cr3"] == 0xABC000
        assert (values["rip"], values["rax"], values["r15"]) == (0xFFFF_FFFF_8100_0000, 0x1000, 0x100F)
        assert (values["gs_base"], values["k_gs_base"]) == (5 << 32, 0x7FFF_0000_0000)
        assert values.keys() >= set(X86_64.trap_registers)
        assert X86_64.roots(values) == {0xABC000}


# -- what passes


def test_asid_changes_are_seen_before_they_happen():
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(asid_changes=HOLD))
        panda.cpus[0].env_ptr.eip = 0xFFFF_FFFF_8110_0000
        panda.load_root(B | 0x1001)  # a PCID, and the bit of page-table isolation
        trap = arrives(source)
        assert isinstance(trap, AsidChange)
        assert (trap.asid, trap.new_asid, trap.moved, trap.held) == (A, B, False, True)
        assert (trap.vcpu, trap.pc) == (0, 0xFFFF_FFFF_8110_0000)
        assert trap.registers.keys() == set(X86_64.trap_registers)
        assert panda.current_asid(panda.cpus[0]) == A
        source.resume(trap)
        panda.done()()
        assert panda.current_asid(panda.cpus[0]) == B | 0x1001
        panda.load_root(B | 2)  # the same asid
        panda.load_root(B)
        assert seen(source, panda) == []
        assert panda.forbidden == 0


def test_system_calls_by_number_and_table():
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(syscalls=frozenset({59}), compat_syscalls=frozenset({11})))
        panda.call(59)
        trap = arrives(source)
        assert isinstance(trap, Syscall)
        assert (trap.number, trap.abi, trap.asid, trap.pc, trap.held) == (59, Abi.NATIVE, A, 0x400000, True)
        source.resume(trap)
        for instruction in (b"\xcd\x80", b"\x0f\x34"):
            panda.call(11, instruction=instruction)
            trap = arrives(source)
            assert (trap.number, trap.abi) == (11, Abi.COMPAT)
            source.resume(trap)
        panda.call(11)  # native: another function
        panda.call(59, instruction=b"\xcd\x80")
        panda.call(1)
        assert seen(source, panda) == []


def test_the_action_of_system_calls():
    panda = FakePanda()
    with opened(panda) as (_, source):
        both = TrapRequest(every_syscall=RECORD, syscalls=frozenset({59}))
        for request, expected in (
            (both, [(1, False), (59, True)]),
            (TrapRequest(syscalls=frozenset({59}), syscall_action=RECORD), [(59, False)]),
            (TrapRequest(syscalls=frozenset({59}), syscall_action=Action.OFF), []),
            (TrapRequest(every_syscall=HOLD), [(1, True), (59, True)]),
            (TrapRequest(), []),
        ):
            source.arm(request)
            panda.call(1)
            panda.call(59)
            assert seen(source, panda) == expected


def test_what_is_settled_is_left_alone():
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(settled=frozenset({A, B}), unsettled_asids=HOLD, unsettled_syscalls=RECORD))
        panda.call(1)
        panda.load_root(B)
        panda.call(2)
        panda.load_root(C)
        panda.call(3)
        panda.load_root(A)
        panda.call(4)
        assert seen(source, panda) == [(C, True), (3, False)]
        source.arm(
            TrapRequest(
                settled=frozenset({A}),
                unsettled_asids=HOLD,
                asid_changes=RECORD,
                unsettled_syscalls=HOLD,
                every_syscall=RECORD,
            )
        )
        panda.load_root(B)
        panda.call(1)
        panda.load_root(A)
        panda.call(2)
        assert seen(source, panda) == [(B, True), (1, True), (A, False), (2, False)]


def test_what_is_pending_is_not_settled_and_at_once():
    """Whatever vCPU is in it, and though it is among the settled ones."""
    panda = FakePanda()
    request = TrapRequest(settled=frozenset({A, B}), unsettled_asids=RECORD, unsettled_syscalls=HOLD)
    with opened(panda) as (_, source):
        source.arm(replace(request, asid_changes=HOLD))
        panda.load_root(B)
        trap = arrives(source)
        source.arm(replace(request, pending=frozenset({B})))
        panda.call(1)
        panda.load_root(A)
        panda.call(2)
        panda.load_root(B)
        source.resume(trap)
        assert seen(source, panda) == [(1, True), (B, False)]
        source.arm(request)
        panda.call(3)
        assert seen(source, panda) == []


def test_a_listed_call_is_trapped_only_with_one_of_its_flags():
    panda = FakePanda()
    flags = {
        CallFlags(number=56, abi=Abi.NATIVE, bits=0x100),
        CallFlags(number=120, abi=Abi.COMPAT, bits=0x4100),
        CallFlags(number=57, abi=Abi.COMPAT, bits=0),  # by the other table
    }
    request = TrapRequest(
        syscalls=frozenset({56, 57, 120}),
        compat_syscalls=frozenset({56, 120}),
        call_flags=frozenset(flags),
    )
    with opened(panda) as (_, source):
        source.arm(request)
        for number, instruction, first, trapped in (
            (56, b"\x0f\x05", 0x11, False),
            (56, b"\x0f\x05", 0x111, True),
            (56, b"\xcd\x80", 0x11, True),
            (57, b"\x0f\x05", 0, True),
            (120, b"\x0f\x05", 0, True),
            (120, b"\xcd\x80", 0x4000, True),
            (120, b"\x0f\x34", 0x11, False),
            (120, b"\xcd\x80", 0x4100 << 32, False),  # 32-bit programs have the lower half
        ):
            panda.call(number, instruction=instruction, first=first)
            assert seen(source, panda) == [(number, True)] * trapped, (number, instruction, hex(first))
        source.arm(replace(request, every_syscall=RECORD))
        panda.call(56, first=0x11)
        panda.call(56, first=0x100)
        assert seen(source, panda) == [(56, False), (56, True)]
        source.arm(replace(request, unsettled_syscalls=HOLD))
        panda.call(56, first=0x11)
        assert seen(source, panda) == [(56, True)]


def test_asids_that_differ_in_one_bit():
    """Of one process whose page table is split, or of two."""
    panda = FakePanda()
    other = Asid(A | 0x1000)
    with opened(panda) as (_, source):
        source.arm(TrapRequest(asid_changes=RECORD, every_syscall=RECORD, settled=frozenset({A})))
        panda.load_root(other)
        panda.call(1)
        (call,) = drain(source, panda.done(), 0.02)
        assert call.asid == A
        panda.load_root(A)
        panda.done()()
        source.arm(
            TrapRequest(
                split_asids=False,
                settled=frozenset({A}),
                unsettled_asids=HOLD,
                unsettled_syscalls=HOLD,
                asid_changes=RECORD,
            )
        )
        panda.call(2)
        panda.load_root(other | 5)  # a PCID
        panda.call(3)
        panda.load_root(A | 7)
        there, call, back = drain(source, panda.done(), 0.02)
        assert (there.asid, there.new_asid, there.held) == (A, other, True)
        assert (call.number, call.asid, call.held) == (3, other, True)
        assert (back.asid, back.new_asid, back.held) == (other, A, False)


def test_where_a_word_has_moved_the_machine_stands_fence_or_not():
    panda = FakePanda()
    entry = (GuestVirtual(0xFFFF_FFFF_8160_0000), Abi.NATIVE)
    with opened(panda) as (_, source):
        source.arm(TrapRequest(words=(WORD,), moved_fence=frozenset({61}), entries=frozenset({entry})))
        panda.write(WORD.gpa, b"\1")
        panda.load_root(B)
        trap = arrives(source)
        assert trap.held
        assert source.wait(0.05) is None
        assert panda.current_asid(panda.cpus[0]) == A
        source.resume(trap)
        panda.done()()
        assert panda.current_asid(panda.cpus[0]) == B


def test_words_that_are_kept_are_not_read_anew():
    """There may be thousands, and asid mode arms them again and again."""
    panda = FakePanda()
    words = tuple(Word(gpa=GuestPhysical(0x200000 + 8 * number)) for number in range(100))
    with opened(panda) as (_, source):
        source.arm(TrapRequest(words=words))
        read, asked = panda.physical_memory_read, []
        panda.physical_memory_read = lambda addr, length: asked.append(addr) or read(addr, length)
        source.arm(TrapRequest(words=words, unsettled_asids=RECORD))
        assert asked == []
        source.arm(TrapRequest(words=(*words, Word(gpa=GuestPhysical(0x201000)))))
        assert asked == [0x201000]


def test_a_word_that_moved_holds_the_next_asid_change():
    panda = FakePanda()
    four = Word(gpa=GuestPhysical(0x200010), size=4)
    with opened(panda) as (_, source):
        source.arm(TrapRequest(words=(WORD, four)))
        panda.load_root(B)
        panda.write(WORD.gpa + 7, b"\1")
        panda.write(four.gpa, b"\1")
        panda.load_root(B)  # no change
        panda.load_root(C)
        panda.load_root(A)
        (trap,) = drain(source, panda.done(), 0.02)
        assert isinstance(trap, AsidChange)
        assert (trap.new_asid, trap.moved, trap.held) == (C, True, True)
        assert trap.words == (WORD.gpa, four.gpa)
        panda.write(four.gpa + 4, b"\1")  # behind it
        panda.load_root(B)
        assert seen(source, panda) == []


def test_what_moved_before_a_request_that_keeps_the_word_still_counts():
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(words=(WORD,)))
        panda.write(WORD.gpa, b"\1")
        panda.done()()
        source.arm(TrapRequest(words=(WORD,), asid_changes=RECORD))
        panda.load_root(B)
        panda.load_root(C)
        first, second = drain(source, panda.done(), 0.02)
        assert (first.moved, first.held, second.moved, second.held) == (True, True, False, False)
        assert (first.words, second.words) == ((WORD.gpa,), ())
        source.arm(TrapRequest())
        panda.write(WORD.gpa, b"\2")
        panda.done()()
        source.arm(TrapRequest(words=(WORD,)))
        panda.load_root(A)
        assert seen(source, panda) == []


@pytest.mark.parametrize(
    "request_",
    [
        TrapRequest(code=frozenset({GuestVirtual(0x1000)})),
        TrapRequest(
            accesses=frozenset(
                {Watchpoint(word=GuestVirtual(0x1000), behind=frozenset({GuestVirtual(0x2000)}))}
            )
        ),
        TrapRequest(words=(Word(gpa=GuestPhysical(0x200001)),)),
        TrapRequest(words=(Word(gpa=GuestPhysical(0x200000), size=2),)),
    ],
    ids=["code", "accesses", "not aligned", "no word"],
)
def test_what_cannot_be_trapped_is_refused(request_):
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(asid_changes=RECORD))
        with pytest.raises(TargetError) as caught:
            source.arm(request_)
        check_error(caught.value)
        with pytest.raises(MemoryFault):
            source.arm(TrapRequest(words=(Word(gpa=GuestPhysical(1 << 40)),)))
        panda.load_root(B)  # the request before is in force
        assert seen(source, panda) == [(B, False)]


@pytest.mark.parametrize("panda", [FakePanda(os_version=None), FakePanda(vcpus=2)], ids=["no os", "vCPUs"])
def test_system_calls_that_cannot_be_had_are_refused(panda):
    with opened(panda) as (made, source):
        assert source.supports == made.supports == {AsidChange}
        (note,) = made.notes
        assert ("os_version" in note) == (panda.os is None)
        with pytest.raises(TargetError, match="System calls") as caught:
            source.arm(TrapRequest(unsettled_syscalls=HOLD))
        check_error(caught.value)
        source.arm(TrapRequest(asid_changes=RECORD))
        panda.load_root(B, vcpu=len(panda.cpus) - 1)
        (trap,) = drain(source, panda.done(), 0.02)
        assert trap.vcpu == len(panda.cpus) - 1


# -- holds


def test_a_held_machine_stands_until_it_is_resumed():
    panda = FakePanda()
    with opened(panda) as (made, source):
        source.arm(TrapRequest(asid_changes=HOLD))
        panda.load_root(B)
        panda.write(WORD.gpa, b"later")
        trap = arrives(source)
        assert made.memory.read(WORD.gpa, 5) == bytes(5)
        assert source.wait(0.1) is None
        assert made.memory.read(WORD.gpa, 5) == bytes(5)
        source.resume(trap)
        source.resume(trap, news=False)
        panda.done()()
        assert made.memory.read(WORD.gpa, 5) == b"later"
        counters = source.counters
        assert (counters.delivered, counters.dropped, counters.hold_timeouts) == (1, 0, 0)
        assert counters.held_ns > 0.1e9


@pytest.mark.parametrize("read", [False, True], ids=["nobody waits", "read, and not resumed"])
def test_a_hold_has_a_limit(read):
    panda = FakePanda()
    with opened(panda, hold=0.2) as (_, source):
        source.arm(TrapRequest(syscalls=frozenset({59})))
        began = time.monotonic()
        panda.call(59)
        trap = arrives(source) if read else None
        panda.done()()
        assert 0.2 <= time.monotonic() - began < PATIENCE
        assert source.counters.hold_timeouts == 1
        assert source.counters.held_ns > 0.18e9
        if trap is not None:
            source.resume(trap)
        drain(source, lambda: None, 0.02)
        panda.call(59)
        assert seen(source, panda) == [(59, True)]
        assert source.counters.hold_timeouts == 1


def test_arming_while_a_trap_is_held():
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(asid_changes=HOLD))
        panda.load_root(B)
        panda.call(59)
        panda.load_root(C)
        trap = arrives(source)
        source.arm(TrapRequest(syscalls=frozenset({59})))
        assert source.wait(0.05) is None
        source.resume(trap)
        assert seen(source, panda) == [(59, True)]


def test_a_flood_is_dropped_and_counted_but_nothing_that_is_held():
    panda = FakePanda()
    with opened(panda) as (_, source):
        source.arm(TrapRequest(every_syscall=RECORD, asid_changes=HOLD))
        for number in range(RING + 10):
            panda.call(number % 300)
        panda.done()()
        panda.load_root(B)
        traps = drain(source, panda.done(), 0.02)
        assert len(traps) == RING + 1
        assert isinstance(traps[-1], AsidChange)
        assert [trap.sequence for trap in traps] == sorted({trap.sequence for trap in traps})
        assert source.counters.dropped == 10
        assert source.counters.delivered == RING + 1
        panda.call(5)  # there is room again
        assert seen(source, panda) == [(5, False)]
        assert source.counters.dropped == 10


def test_closing_lets_go_and_leaves_nothing_behind():
    panda = FakePanda()
    with opened(panda) as (made, source):
        source.arm(TrapRequest(every_syscall=HOLD, asid_changes=RECORD))
        panda.call(1)
        arrives(source)
        with pytest.raises(TargetError, match="another reader") as caught:
            made.open(X86_64, KINDS, 1.0)
        check_error(caught.value)
        assert LISTED in panda.ppp_registered_cbs
        began = time.monotonic()
        source.close()
        source.close()
        panda.call(2)
        panda.done()()
        assert time.monotonic() - began < PATIENCE / 2
        panda.load_root(B)  # on its thread lists may be changed
        panda.done()()
        assert panda.ppp_registered_cbs == {}
        assert panda.sys_enter_list == []
        assert [one.enabled for one in panda.asid_list] == [False]
        with pytest.raises(GuestGone):
            source.wait(0)
        again = made.open(X86_64, KINDS, 1.0)
        panda.call(3)
        assert seen(again, panda) == []
        again.arm(TrapRequest(every_syscall=RECORD))
        panda.call(4)
        assert seen(again, panda) == [(4, False)]


def test_two_guests_of_one_run_trap_side_by_side():
    panda = FakePanda()
    one, other = guest(panda), guest(panda)
    with Running(panda):
        sources = [made.open(X86_64, KINDS, PATIENCE) for made in (one, other)]
        for source in sources:
            source.arm(TrapRequest(asid_changes=HOLD))
        panda.load_root(B)
        for source in sources:
            trap = arrives(source)
            assert trap.new_asid == B
            source.resume(trap)
        one.close()
        panda.load_root(C)
        assert seen(sources[1], panda) == [(C, True)]


@pytest.mark.parametrize("closed", [False, True])
def test_the_end_lets_a_held_machine_go(closed):
    panda = FakePanda()
    made = guest(panda)
    running = Running(panda)
    with running:
        source = made.open(X86_64, KINDS, 60.0)
        source.arm(TrapRequest(asid_changes=HOLD, every_syscall=RECORD))
        panda.load_root(B)
        trap = arrives(source)
        if closed:
            made.close()
        running.end()  # fails if run() does not return
        with pytest.raises(GuestGone):
            source.wait(1.0)
        source.resume(trap)
        source.close()
    made.close()
    assert running.error is None
    assert not made.alive()


def test_the_end_is_seen_by_whoever_waits():
    panda = FakePanda()
    running = Running(panda)
    made = guest(panda)
    with running:
        source = made.open(X86_64, KINDS, PATIENCE)
        ending = threading.Timer(0.1, running.end)
        ending.start()
        began = time.monotonic()
        with pytest.raises(GuestGone):
            source.wait(10 * PATIENCE)
        assert time.monotonic() - began < PATIENCE
        ending.join()


def test_a_machine_that_stops_by_itself_is_over():
    panda = FakePanda()
    made = guest(panda)
    with Running(panda):
        source = made.open(X86_64, KINDS, PATIENCE)
        panda.running.clear()  # the first that run() does
        assert not made.alive()
        panda.running.set()
        assert made.alive()
        source.arm(TrapRequest(asid_changes=HOLD))
        panda.stop_run()
        with pytest.raises(GuestGone):
            source.wait(PATIENCE)
        with pytest.raises(GuestGone):
            source.arm(TrapRequest())
    assert not made.alive()
    source.close()
    made.close()


def test_the_users_own_callbacks_are_left_alone():
    panda = FakePanda()
    mine = []

    @panda.cb_asid_changed
    def my_asid_changed(cpu, old, new):
        mine.append(new)
        return 0

    @panda.ppp("syscalls2", "on_all_sys_enter")
    def my_sys_enter(cpu, pc, number):
        mine.append(number)

    with opened(panda) as (_, source):
        source.arm(TrapRequest(asid_changes=RECORD, every_syscall=RECORD))
        panda.load_root(B)
        panda.call(7)
        assert len(seen(source, panda)) == 2
        source.close()
        panda.load_root(C)
        panda.call(8)
        panda.done()()
    assert mine == [B, 7, C, 8]


# -- all the way


def test_a_session_and_a_monitor_watch_while_it_runs():
    world = World()
    world.ram.extend(bytes((2 << 20) - len(world.ram)))
    panda = FakePanda(ram=world.ram)
    panda.cpus[0].env_ptr.cr[3] = page_of(world.shell)
    made = guest(panda)
    names: list[str] = []
    errors: list[BaseException] = []
    polling = threading.Event()

    def watch() -> None:
        try:
            with Session(made, systems_wanted=[TOY]) as session:
                for batch in Monitor(session, mode="poll", interval=0.001).batches(duration=30):
                    names.extend(event.process.comm for event in batch if hasattr(event, "process"))
                    polling.set()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    with Running(panda):
        assert polling.wait(PATIENCE), errors
        assert names == ["init", "sh"]
        world.fork(2)
        deadline = time.monotonic() + PATIENCE
        while len(names) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    thread.join(PATIENCE)
    assert names == ["init", "sh", "sh"]
    (error,) = errors
    assert isinstance(error, GuestGone)
    check_error(error)
