"""Watchpoints over the gdb stub: who has hit, when several vCPUs stop at once."""

from __future__ import annotations

import time

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import TargetError
from live.core.memory import GuestVirtual
from live.core.traps import Access, TrapRequest, Watchpoint
from live.hypervisors.qemu.gdbstub.client import GdbClient
from live.hypervisors.qemu.gdbstub.source import GdbSource
from live.hypervisors.qemu.gdbstub.wire import dial
from tests.hypervisors.stub import COMPOSED, CORE, Run, Stub

FORKS, EXECS = 0xFFFF_FFFF_8200_0010, 0xFFFF_FFFF_8300_0020
FORK, EXEC, UNMEANT, ELSEWHERE = 0x4010, 0x5010, 0x6010, 0x7000
REQUEST = TrapRequest(
    accesses=frozenset(
        {
            Watchpoint(word=GuestVirtual(FORKS), behind=frozenset({GuestVirtual(FORK)})),
            Watchpoint(
                word=GuestVirtual(EXECS),
                behind=frozenset({GuestVirtual(EXEC)}),
                others=frozenset({GuestVirtual(UNMEANT)}),
            ),
        }
    )
)
IDLE = Run()
"""The run between connecting and arming."""


@pytest.fixture
def opened(tmp_path):
    """opened(script, vcpus) -> (stub, source), armed."""
    made = []

    def start(script, vcpus=2, hold=5.0):
        stub = Stub(tmp_path / "stub", vcpus, [IDLE, *script])
        source = GdbSource(stub.guest(), X86_64, hold, watch=True)
        made.append((stub, source))
        source.arm(REQUEST)
        return stub, source

    yield start
    for stub, source in made:
        source.close()
        stub.join()
        assert stub.log[-1] == "D"


def since_armed(stub):
    """What was asked after the watchpoints were set and the guest ran; it runs again, or we are gone."""
    until = time.monotonic() + 5
    while not stub.running and stub.log[-1] != "D" and time.monotonic() < until:
        time.sleep(0.01)
    return stub.log[stub.log.index("c", stub.log.index(f"Z4,{EXECS:x},4")) :]


def take(source, count, *, news=True):
    traps = []
    for _ in range(count):
        trap = source.wait(5)
        traps.append(trap)
        source.resume(trap, news=news)
    return [(type(trap), trap.vcpu, trap.pc, trap.address, trap.registers["rdi"]) for trap in traps]


def test_a_hit_is_taken_and_the_guest_let_go_in_one_request(opened):
    stub, source = opened([Run(at={1: FORK}, hit={1: FORKS}, reported=1)], vcpus=1)
    assert take(source, 1) == [(Access, 0, FORK, FORKS, 1)]
    assert source.wait(0.05) is None
    assert since_armed(stub) == ["c", "c"]
    assert stub.flushes == 0


def test_of_two_that_hit_at_once_both_are_delivered_before_the_guest_runs(opened):
    both = Run(at={1: FORK, 2: EXEC}, hit={1: FORKS, 2: EXECS}, reported=2)
    stub, source = opened([both])
    first, second = take(source, 2)
    assert first == (Access, 1, EXEC, EXECS, 2)
    assert second == (Access, 0, FORK, FORKS, 1)
    assert source.wait(0.05) is None
    # The mark of the one that was not reported is taken away, and no other's.
    assert since_armed(stub) == ["c", "vCont;s:1", "c"]
    assert stub.marks == {}
    assert stub.flushes == 0
    assert source.counters.delivered == 2


def test_three_of_four(opened):
    hit = Run(at={1: FORK, 3: EXEC, 4: FORK}, hit={1: FORKS, 3: EXECS, 4: FORKS}, reported=3)
    stub, source = opened([hit], vcpus=4)
    assert [(vcpu, pc) for _, vcpu, pc, _, _ in take(source, 3)] == [(2, EXEC), (0, FORK), (3, FORK)]
    assert stub.marks == {}


def test_an_access_that_is_not_meant_is_let_go_at_once(opened):
    stub, source = opened(
        [
            Run(at={1: UNMEANT}, hit={1: EXECS}, reported=1),
            Run(at={1: ELSEWHERE}, hit={1: EXECS}, reported=1),
            Run(at={2: FORK}, hit={2: FORKS}, reported=2),
        ]
    )
    assert [pc for _, _, pc, _, _ in take(source, 1)] == [FORK]
    assert since_armed(stub) == ["c"] * 4
    assert source.counters.delivered == 1


def test_what_is_not_meant_does_not_keep_its_mark_either(opened):
    both = Run(at={1: UNMEANT, 2: FORK}, hit={1: EXECS, 2: FORKS}, reported=2)
    stub, source = opened([both])
    assert [pc for _, _, pc, _, _ in take(source, 1)] == [FORK]
    assert since_armed(stub) == ["c", "vCont;s:1", "c"]
    assert stub.marks == {}


def test_where_the_one_reported_is_let_go_the_other_is_not_lost(opened):
    both = Run(at={1: FORK, 2: UNMEANT}, hit={1: FORKS, 2: EXECS}, reported=2)
    stub, source = opened([both])
    assert take(source, 1) == [(Access, 0, FORK, FORKS, 1)]
    assert stub.marks == {}


@pytest.mark.parametrize("news", [True, False])
def test_a_vcpu_that_has_not_moved_is_not_stepped(opened, news):
    """It is reported once more. If that is no news its hit was taken before, and it has no mark."""
    script = [
        Run(at={1: FORK}, hit={1: FORKS}, reported=1),
        Run(at={2: EXEC}, hit={2: EXECS}, reported=2),
    ]
    stub, source = opened(script)
    take(source, 2)
    assert take(source, 1, news=news) == [(Access, 0, FORK, FORKS, 1)]
    assert since_armed(stub) == ["c", "c", *(["vCont;s:1"] if news else []), "c"]
    assert stub.flushes == news


def test_a_vcpu_that_has_not_moved_behind_what_is_not_meant_is_not_stepped(opened):
    script = [
        Run(at={1: UNMEANT}, hit={1: EXECS}, reported=1),
        Run(at={2: EXEC}, hit={2: EXECS}, reported=2),
    ]
    stub, source = opened(script)
    assert [pc for _, _, pc, _, _ in take(source, 1)] == [EXEC]
    assert since_armed(stub) == ["c"] * 3
    assert stub.flushes == 0


def test_a_vcpu_that_has_moved_is_stepped_though_it_was_no_news(opened):
    script = [
        Run(at={1: FORK}, hit={1: FORKS}, reported=1),
        Run(at={1: EXEC, 2: EXEC}, hit={1: EXECS, 2: EXECS}, reported=2),
    ]
    stub, source = opened(script)
    take(source, 3, news=False)
    assert since_armed(stub) == ["c", "c", "vCont;s:1", "c"]
    assert stub.marks == {}


def test_a_stop_of_nobody_is_let_go(opened):
    """QEMU's second request to stop, which came when the first was done with."""
    stub, source = opened([Run(at={1: ELSEWHERE}, reported=1), Run(at={1: EXEC}, hit={1: EXECS}, reported=1)])
    assert [pc for _, _, pc, _, _ in take(source, 1)] == [EXEC]
    assert since_armed(stub) == ["c"] * 3


def test_a_hit_that_an_interrupt_hides_is_delivered(opened):
    stub, source = opened([Run(at={2: EXEC}, hit={2: EXECS})])
    forks = {one for one in REQUEST.accesses if one.word == FORKS}
    source.arm(TrapRequest(accesses=REQUEST.accesses - forks))
    assert take(source, 1) == [(Access, 1, EXEC, EXECS, 2)]
    assert stub.marks == {}
    assert since_armed(stub) == ["c", "vCont;s:2", f"z4,{FORKS:x},4", "c"]


def test_a_hit_is_not_delivered_when_nobody_wants_it_any_more(opened):
    stub, source = opened([Run(at={2: EXEC}, hit={2: EXECS})])
    source.arm(TrapRequest())
    assert source.wait(0.05) is None
    assert source.counters.delivered == 0
    assert since_armed(stub)[-1] == "c"
    assert stub.marks == {}


def test_the_hold_limit_ends_all_holds_of_a_stop(opened):
    both = Run(at={1: FORK, 2: EXEC}, hit={1: FORKS, 2: EXECS}, reported=2)
    stub, source = opened([both], hold=0.2)
    trap = source.wait(5)
    until = time.monotonic() + 5
    while not stub.running and time.monotonic() < until:
        time.sleep(0.01)
    assert stub.running
    assert source.counters.hold_timeouts == 2
    source.resume(trap)
    assert source.wait(0.05) is None


def test_closing_leaves_no_mark_and_no_watchpoint(opened):
    stub, source = opened([Run(at={2: EXEC}, hit={2: EXECS})])
    source.close()
    stub.join()
    assert stub.marks == {}
    assert since_armed(stub) == ["c", "vCont;s:2", "D"]


@pytest.mark.parametrize("features", [CORE, COMPOSED], ids=["core", "composed"])
def test_registers_are_found_where_the_stub_has_no_core_file_too(tmp_path, features):
    stub = Stub(tmp_path / "stub", 1, features=features)
    client = GdbClient(dial(str(stub.path)), X86_64)
    assert client.registers.decode(client.requests(b"Hg1", b"g")[1]) == {
        "rdi": 1,
        "rip": 0x100,
        "cr3": 0x1000,
    }
    client.detach()
    stub.join()
    assert stub.log == ["D"]


@pytest.mark.parametrize("features", [{}, {"target.xml": '<target><reg name="pc" bitsize="64"/></target>'}])
def test_a_stub_that_describes_no_program_counter_is_refused_and_its_guest_runs(tmp_path, features):
    stub = Stub(tmp_path / "stub", 1, features=features)
    with pytest.raises(
        TargetError, match=r"describes no program counter of a vCPU of x86_64; use --mode poll"
    ):
        GdbSource(stub.guest(), X86_64, watch=True)
    stub.join()
    assert stub.log == ["D"]
