"""The state machine of the gdb stub's source, from a list of inputs: no socket, no clock, no guest."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from live.core.errors import TargetError
from live.core.memory import GuestVirtual
from live.core.traps import Access, Action, CodeHit, Trap, TrapRequest, Watchpoint
from live.hypervisors.qemu.gdbstub import stops
from live.hypervisors.qemu.gdbstub.armed import Armed
from live.hypervisors.qemu.gdbstub.hits import HitFinder
from live.hypervisors.qemu.gdbstub.passage import Passage
from live.hypervisors.qemu.gdbstub.stops import (
    TRANSITIONS,
    Answered,
    Ask,
    Deliver,
    Expire,
    Hold,
    Leave,
    LetGo,
    Resume,
    Send,
    Settle,
    Stand,
    State,
    Step,
    Stopped,
    Stops,
    Taken,
)
from live.hypervisors.qemu.gdbstub.target import Register, RegisterFile, Stop

WORD, OTHER_WORD = GuestVirtual(0x9010), GuestVirtual(0x9020)
BEHIND, BEHIND_OTHER, UNMEANT = GuestVirtual(0x4010), GuestVirtual(0x5010), GuestVirtual(0x6010)
NO_OP, PUSH, ELSEWHERE = GuestVirtual(0x1000), GuestVirtual(0x2000), 0x7000
CODE = {NO_OP: b"\x00\x02", PUSH: b"\x55\x48"}
REQUEST = TrapRequest(
    code=frozenset(CODE),
    accesses=frozenset(
        {
            Watchpoint(word=WORD, behind=frozenset({BEHIND})),
            Watchpoint(word=OTHER_WORD, behind=frozenset({BEHIND_OTHER}), others=frozenset({UNMEANT})),
        }
    ),
)
MACHINE = SimpleNamespace(
    name="toy",
    trap_registers=("first", "second"),
    pc="at",
    page_root="table",
    longest_no_op=2,
    asid_of=lambda root: root & ~0xFFF,
    no_op_length=lambda code: 2 if code == CODE[NO_OP] else 0,
)
"""An architecture that nobody has heard of: nothing here knows registers by name."""
NAMES = ("first", "at", "table")


class Scene:
    """A stopped guest that answers what it is asked; ``log`` has what was to be done but looking."""

    def __init__(self, vcpus: int = 2, *, remove_to_step: bool = False) -> None:
        self.at = dict.fromkeys(range(1, vcpus + 1), ELSEWHERE)
        self.first = {thread: thread for thread in self.at}
        self.armed = Armed()
        registers = RegisterFile({name: Register(n, 8 * n, 8) for n, name in enumerate(NAMES)}, MACHINE)
        hits = HitFinder(MACHINE, registers, self.armed, list(self.at))
        passage = Passage(MACHINE, registers, self.armed, remove_to_step=remove_to_step)
        self.stops = Stops(MACHINE, self.armed, hits, passage)
        self.asked: tuple[bytes, ...] = ()
        self.log: list[object] = []
        self.arm(REQUEST)

    def arm(self, request: TrapRequest) -> list[bytes]:
        change = self.armed.change(request)
        if change is None:
            return []
        self.armed.begun(change)
        self.armed.answered(change, self.answers(change.requests))
        return list(change.requests)

    def answers(self, requests: tuple[bytes, ...]) -> list[bytes]:
        return list(self._answers(requests))

    def _answers(self, requests: tuple[bytes, ...]) -> Iterator[bytes]:
        thread = 0
        for request in requests:
            if request.startswith(b"Hg"):
                thread = int(request[2:], 16)
                yield b"OK"
            elif request == b"g":
                values = (self.first[thread], self.at[thread], 0x3000 | thread)
                yield b"".join(value.to_bytes(8, "little").hex().encode() for value in values)
            elif request == b"p1":
                yield self.at[thread].to_bytes(8, "little").hex().encode()
            elif request.startswith(b"m"):
                address, length = (int(part, 16) for part in request[1:].split(b","))
                # Under KVM the first byte is the breakpoint's own.
                yield CODE.get(address, b"\x00\x00")[:length].hex().encode()
            else:
                yield b"OK"

    def feed(self, *given: stops.Input, now: float = 0.0) -> Trap | None:
        """Feed one after the other, answer what is asked; the trap that was delivered."""
        trap = None
        for one in given:
            todo = list(self.stops.feed(one, now))
            while todo:
                output = todo.pop(0)
                if isinstance(output, Ask):
                    assert not todo, "an Ask is the last"
                    todo = list(self.stops.feed(Answered(self.answers(output.requests)), now))
                elif isinstance(output, Hold):
                    trap = output.trap
                else:
                    self.log.append(output)
        return trap

    def took(self) -> list[object]:
        log, self.log = self.log, []
        return log


def hit(thread: int) -> Stopped:
    return Stopped(Stop(5, thread))


def summary(trap: Trap | None) -> tuple[object, ...]:
    assert trap is not None
    return type(trap), trap.vcpu, trap.pc, getattr(trap, "address", None)


def test_an_access_is_delivered_and_the_guest_let_go() -> None:
    scene = Scene(1)
    scene.at[1] = BEHIND
    trap = scene.feed(hit(1), Deliver(), now=2.5)
    assert summary(trap) == (Access, 0, BEHIND, WORD)
    assert trap is not None
    assert (trap.asid, trap.registers, trap.time_ns, trap.held) == (0x3000, {"first": 1}, 2_500_000_000, True)
    assert scene.stops.state is State.HELD
    assert scene.took() == [Stand(), Stand()]
    scene.feed(Resume(trap.sequence), now=2.75)
    assert scene.took() == [LetGo()]
    assert scene.stops.state is State.RUNNING
    assert (scene.stops.counters.delivered, scene.stops.counters.held_ns) == (1, 250_000_000)


def test_a_breakpoint_on_a_no_op_is_passed_in_the_message_that_lets_go() -> None:
    scene = Scene(1)
    scene.at[1] = NO_OP
    trap = scene.feed(hit(1), Deliver())
    assert summary(trap) == (CodeHit, 0, NO_OP, None)
    scene.feed(Resume(1))
    behind = (NO_OP + 2).to_bytes(8, "little").hex().encode()
    assert scene.took()[2:] == [LetGo((b"Hg1", b"P1=" + behind))]


@pytest.mark.parametrize("remove", [False, True])
def test_another_instruction_is_stepped_over(remove: bool) -> None:
    scene = Scene(1, remove_to_step=remove)
    scene.at[1] = PUSH
    scene.feed(hit(1), Deliver(), Resume(1))
    around = ([Send((b"z0,2000,1",))], [Send((b"Z0,2000,1",))]) if remove else ([], [])
    assert scene.took()[2:] == [*around[0], Step(1), *around[1], LetGo()]


def test_a_no_op_whose_first_byte_is_the_breakpoints_own_is_one_all_the_same() -> None:
    scene = Scene(1)
    scene.at[1] = NO_OP
    scene.feed(hit(1), Deliver())
    (ask,) = scene.stops.feed(Resume(1), 0)
    assert ask == Ask((b"m1000,2",))
    (output,) = scene.stops.feed(Answered([b"cc02"]), 0)
    assert isinstance(output, LetGo)
    assert output.before


def test_code_that_cannot_be_read_is_stepped_over() -> None:
    scene = Scene(1)
    scene.at[1] = NO_OP
    scene.feed(hit(1), Deliver())
    scene.stops.feed(Resume(1), 0)
    assert scene.stops.feed(Answered([b"E14"]), 0) == (Step(1), LetGo())


def test_of_two_that_hit_at_once_both_are_delivered_before_the_guest_runs() -> None:
    scene = Scene(3)
    scene.at.update({1: BEHIND, 3: BEHIND_OTHER})
    first = scene.feed(hit(3), Deliver())
    assert summary(first) == (Access, 2, BEHIND_OTHER, OTHER_WORD)
    scene.feed(Resume(1))
    assert scene.stops.state is State.STANDING
    assert scene.took() == [Stand(), Stand()]
    second = scene.feed(Deliver())
    assert summary(second) == (Access, 0, BEHIND, WORD)
    scene.feed(Resume(2))
    # The mark of the one that was not reported is taken away, and no other's.
    assert scene.took() == [Stand(), Step(1), LetGo()]


def test_a_no_op_is_passed_at_once_where_another_vcpu_is_still_to_be_delivered() -> None:
    scene = Scene()
    scene.at.update({1: NO_OP, 2: BEHIND})
    scene.feed(hit(1), Deliver(), Resume(1))
    (send,) = scene.took()[2:]
    assert isinstance(send, Send)
    scene.feed(Deliver(), Resume(2))
    assert scene.took() == [Stand(), Step(2), LetGo()]


def test_a_breakpoint_that_another_vcpu_has_hit_hits_again() -> None:
    scene = Scene()
    scene.at.update({1: BEHIND, 2: NO_OP})
    scene.feed(hit(1), Deliver(), Resume(1))
    assert scene.stops.state is State.RUNNING
    assert scene.took()[2:] == [LetGo()]


@pytest.mark.parametrize("news", [True, False])
def test_an_unmoved_vcpu_has_a_mark_only_if_it_is_news(news: bool) -> None:
    scene = Scene()
    scene.at[1] = BEHIND
    scene.feed(hit(1), Deliver(), Resume(1))
    scene.at[2] = BEHIND_OTHER
    scene.took()
    assert summary(scene.feed(hit(2), Deliver())) == (Access, 1, BEHIND_OTHER, OTHER_WORD)
    scene.feed(Resume(2))
    assert summary(scene.feed(Deliver())) == (Access, 0, BEHIND, WORD)
    scene.feed(Resume(3, news))
    assert scene.took()[3:] == [*([Step(1)] if news else []), LetGo()]


def test_a_vcpu_that_has_moved_has_a_mark_though_it_was_no_news() -> None:
    scene = Scene()
    scene.at[1] = BEHIND
    scene.feed(hit(1), Deliver(), Resume(1))
    scene.at[2], scene.first[1] = BEHIND_OTHER, 77
    scene.feed(hit(2), Deliver(), Resume(2), Deliver())
    scene.took()
    scene.feed(Resume(3, news=False))
    assert scene.took() == [Step(1), LetGo()]


def test_an_access_that_is_not_meant_is_let_go_and_its_mark_taken_away() -> None:
    scene = Scene()
    scene.at.update({1: UNMEANT, 2: ELSEWHERE})
    assert scene.feed(hit(2), Deliver()) is None
    assert scene.took() == [Stand(), Step(1), LetGo()]
    assert scene.feed(hit(1), Deliver()) is None
    assert scene.took() == [Stand(), LetGo()]


def test_a_foreign_pause_is_left_alone_until_it_is_regained() -> None:
    scene = Scene()
    assert scene.feed(Stopped(Stop(2, 1)), Deliver()) is None
    assert (scene.stops.state, scene.stops.foreign) == (State.PAUSED, True)
    assert scene.took() == [Leave()], "neither the watchdog nor the guest is told anything"
    assert scene.feed(Deliver(), Settle(), Expire(), Resume(1)) is None
    assert scene.took() == []
    scene.feed(Stopped(None), Settle())
    assert (scene.stops.state, scene.stops.foreign) == (State.RUNNING, False)
    assert scene.took() == [Stand(), LetGo()]


def test_what_has_hit_in_a_foreign_pause_is_delivered_and_the_guest_stays_paused() -> None:
    scene = Scene()
    scene.at[2] = BEHIND
    trap = scene.feed(Stopped(Stop(2, 1)), Deliver())
    assert summary(trap) == (Access, 1, BEHIND, WORD)
    assert scene.stops.clean() == (), "no vCPU is stepped in somebody else's pause"
    scene.feed(Resume(1))
    assert (scene.stops.state, scene.took()) == (State.PAUSED, [Stand(), Leave()])
    # They let it go, and we stop it: the mark can go now.
    scene.at[2] = ELSEWHERE
    scene.feed(Stopped(None), Settle())
    assert scene.took() == [Stand(), Step(2), LetGo()]


def test_a_trap_that_is_held_as_their_pause_ends_is_held_on() -> None:
    scene = Scene()
    scene.at[2] = BEHIND
    scene.feed(Stopped(Stop(2, 1)), Deliver())
    scene.feed(Stopped(None), Settle())
    assert (scene.stops.state, scene.stops.foreign) == (State.HELD, False)
    scene.feed(Resume(1), Deliver(), Resume(2))
    assert scene.stops.state is State.RUNNING


def test_a_hold_that_expires_gives_up_all_of_the_stop() -> None:
    scene = Scene()
    scene.at.update({1: BEHIND, 2: BEHIND_OTHER})
    scene.feed(hit(2), Deliver(), now=1)
    assert scene.stops.standing()
    assert scene.stops.since == 1
    scene.feed(Expire(), now=3)
    assert scene.took()[2:] == [Step(1), LetGo()]
    assert scene.stops.counters.hold_timeouts == 2
    assert scene.stops.counters.held_ns == 2_000_000_000
    assert not scene.stops.standing()
    assert scene.feed(Resume(1), Deliver()) is None
    assert scene.took() == [], "too late: it runs"


def test_what_nobody_takes_expires_undelivered() -> None:
    scene = Scene()
    scene.at[1] = PUSH
    scene.feed(hit(1), now=1)
    assert scene.stops.standing()
    scene.feed(Expire(), now=2)
    assert scene.took() == [Stand(), Step(1), LetGo()], "it would hit again, and again"
    counters = scene.stops.counters
    assert (counters.delivered, counters.hold_timeouts, counters.held_ns) == (0, 1, 0)


def test_a_breakpoint_that_expires_is_passed() -> None:
    scene = Scene()
    scene.at[1] = PUSH
    scene.feed(hit(1), Deliver(), Expire())
    assert scene.took()[2:] == [Step(1), LetGo()]


def test_a_trap_that_is_not_the_held_one_resumes_nothing() -> None:
    scene = Scene()
    scene.at[1] = BEHIND
    scene.feed(hit(1), Deliver(), Resume(2))
    assert scene.stops.state is State.HELD


def test_what_is_not_wanted_any_more_is_not_delivered() -> None:
    scene = Scene()
    scene.at.update({1: BEHIND, 2: PUSH})
    scene.feed(hit(2))
    assert scene.arm(TrapRequest()) == [b"z0,1000,1", b"z0,2000,1", b"z4,9010,4", b"z4,9020,4"]
    assert scene.feed(Deliver()) is None
    assert scene.stops.counters.delivered == 0
    assert scene.took() == [Stand(), Step(1), LetGo()]


def test_a_breakpoint_that_was_removed_while_held_need_not_be_passed() -> None:
    scene = Scene()
    scene.at[1] = PUSH
    scene.feed(hit(1), Deliver())
    scene.arm(TrapRequest())
    scene.feed(Resume(1))
    assert scene.took()[2:] == [LetGo()]


def test_arming_says_what_has_changed_only() -> None:
    scene = Scene()
    assert scene.arm(REQUEST) == []
    words = frozenset(one for one in REQUEST.accesses if one.word == WORD)
    assert scene.arm(TrapRequest(code=frozenset({PUSH}), accesses=words)) == [b"z0,1000,1", b"z4,9020,4"]
    assert scene.arm(REQUEST) == [b"m1000,1", b"Z0,1000,1", b"Z4,9020,4"]
    assert scene.arm(TrapRequest(code=REQUEST.code, code_action=Action.OFF, accesses=REQUEST.accesses)) == [
        b"z0,1000,1",
        b"z0,2000,1",
    ]


def test_what_the_stub_refuses_is_not_armed_and_the_rest_is() -> None:
    armed = Armed(hardware=True)
    change = armed.change(REQUEST)
    assert change is not None
    assert change.requests[1] == b"Z1,1000,1"
    armed.begun(change)
    with pytest.raises(TargetError, match=r"QEMU cannot trap at 0x2000 \(E22\); use --mode poll"):
        armed.answered(change, [b"00", b"OK", b"55", b"E22", b"OK", b""])
    assert (armed.code(NO_OP), armed.code(PUSH)) == (True, False)
    assert armed.places.words == {WORD}
    again = armed.change(REQUEST)
    assert again is not None
    assert again.requests == (b"m2000,1", b"Z1,2000,1", b"Z4,9020,4")


@pytest.mark.parametrize(
    "request_",
    [
        TrapRequest(asid_changes=Action.HOLD),
        TrapRequest(syscalls=frozenset({59})),
        TrapRequest(words=(None,)),
    ],
)
def test_what_a_stub_cannot_trap_is_refused(request_: TrapRequest) -> None:
    with pytest.raises(TargetError, match="code and data only"):
        Armed().change(request_)


def test_when_the_watchdog_has_let_it_go_nothing_is_said_any_more() -> None:
    scene = Scene()
    scene.at[1] = BEHIND
    scene.feed(hit(1), Deliver(), Taken())
    scene.took()
    scene.feed(Resume(1), Expire(), Deliver(), Settle(), hit(1), Stopped(None))
    assert scene.took() == []
    assert not scene.stops.standing()


def test_a_look_that_was_not_answered_is_as_if_nobody_had_hit() -> None:
    scene = Scene()
    scene.at[1] = BEHIND
    assert scene.stops.feed(hit(1), 0)[-1] == Ask((b"Hg1", b"g", b"Hg2", b"p1"))
    assert scene.stops.feed(Deliver(), 0) == (LetGo(),)


def some_input(scene: Scene, some: random.Random) -> stops.Input | None:
    """What may come next; None: nothing."""
    state = scene.stops.state
    asked = state in (State.ASKING, State.PASSING)
    if some.random() < 0.05 and not asked:
        scene.arm(some.choice([REQUEST, TrapRequest(code=REQUEST.code), TrapRequest()]))
    kinds = (Stopped, *[Answered] * 3, Deliver, Settle, Resume, Resume, Expire)
    kind = Taken if some.random() < 0.003 else some.choice(kinds)
    if kind is Stopped and state is State.RUNNING:
        places = (BEHIND, BEHIND_OTHER, UNMEANT, NO_OP, PUSH, ELSEWHERE)
        scene.at = {thread: some.choice(places) for thread in scene.at}
        return Stopped(some.choice([None, Stop(5, 1), Stop(5, 2), Stop(2, 1)]))
    if kind is Stopped:  # who had paused it has let it go, and we have stopped it
        return Stopped(None) if scene.stops.foreign else None
    if kind is Answered:
        return Answered(scene.answers(scene.asked)) if asked else None
    if kind is Resume:
        return Resume(some.choice([scene.stops.counters.delivered, 0]), news=some.random() < 0.5)
    return kind()


def test_the_transition_table_is_the_whole_truth() -> None:
    """A long random walk meets every row of it and every state that a row allows, and nothing else."""
    some = random.Random(3)
    scene, met = Scene(4), set()
    every = {(*row, after) for row, states in TRANSITIONS.items() for after in states}
    for _ in range(1_000_000):
        before, given = scene.stops.state, some_input(scene, some)
        if given is None:
            continue
        outputs = scene.stops.feed(given, 0)
        if (before, type(given)) not in TRANSITIONS:
            assert (outputs, scene.stops.state) == ((), before)
            continue
        met.add((before, type(given), scene.stops.state))
        assert met <= every
        scene.asked = next((one.requests for one in outputs if isinstance(one, Ask)), scene.asked)
        assert (LetGo in map(type, outputs)) == (scene.stops.state is State.RUNNING)
        assert not (scene.stops.foreign and Step in map(type, outputs))
        if met == every:
            return
        if scene.stops.state is State.TAKEN and some.random() < 0.5:
            scene = Scene(4)
    raise AssertionError(f"never met: {every - met}")
