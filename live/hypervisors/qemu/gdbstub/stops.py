"""What stands, who has hit, and what is owed: the state machine of `GdbSource`.  No I/O, no clock.

Theory of operation
-------------------
An `Input` is fed, `Output`s come out, to be done in order.  `Ask` is always the last; its answers are the
next input.  `TRANSITIONS` is the whole truth of what may come when: an input that has no row in a state
changes nothing, and nothing comes of it.

A stop is of every vCPU.  It is *ours* if QEMU has reported a hit (T05), or if we have interrupted the guest:
then it may not stand longer than the hold limit, and goes on when nothing is pending.  Any other stop is by
*somebody else* (``stop`` of a monitor, a shutdown): who has hit meanwhile is delivered, too, but letting the
guest go is theirs.

What has hit in one stop is *pending*, and is delivered one trap at a time: `Hold`.  When the last of them was
resumed, the guest runs.  Before that the instruction under a breakpoint is passed (`passage`), and a mark
that QEMU keeps of an unreported hit is taken away by a step (`hits`).

The hold limit counts from the delivery, or from the stop for what nobody takes.  At its end everything that
is pending is given up: it cannot be told any more what it stands for.

Wart: where QEMU reports a pause by somebody else while our own interrupt is on its way, it is taken for ours.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from live.core.machine import Architecture
from live.core.memory import GuestVirtual
from live.core.traps import Access, CodeHit, Trap, TrapCounters, VcpuIndex
from live.hypervisors.qemu.gdbstub.armed import Armed
from live.hypervisors.qemu.gdbstub.hits import Hit, HitFinder, Question
from live.hypervisors.qemu.gdbstub.passage import Passage, Skip
from live.hypervisors.qemu.gdbstub.target import TRAP_SIGNAL, Stop


class State(enum.StrEnum):
    """Of the guest, as far as we know it."""

    RUNNING = "running"
    ASKING = "asking"
    """It stands; who has hit is being asked."""
    STANDING = "standing"
    """It stands; nothing is held.  What has hit is pending."""
    HELD = "held"
    """It stands; a trap was delivered, and waits to be resumed."""
    PASSING = "passing"
    """It stands; the code at a breakpoint that is to be passed is being asked for."""
    PAUSED = "paused"
    """It stands, by somebody else; nothing is pending."""
    TAKEN = "taken"
    """The watchdog has let it go; nothing may be said to the stub any more."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The guest stands.  ``stop``: what was reported, not being asked for; None: we have interrupted it."""

    stop: Stop | None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to `Ask`."""

    answers: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Deliver:
    """The next trap is wanted."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Let the guest go, if nothing is pending."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A trap was looked at; ``news``: and something learnt from it."""

    sequence: int
    news: bool = True


@dataclass(frozen=True, slots=True)
class Expire:
    """The hold limit is over."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The watchdog has let the guest go."""


Input = Stopped | Answered | Deliver | Settle | Resume | Expire | Taken


@dataclass(frozen=True, slots=True)
class Stand:
    """From now on the guest stands on our account: the watchdog is to know."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Requests whose answers are the next input."""

    requests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Requests of whose answers nothing is to be known."""

    requests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of one vCPU, while the others stand."""

    thread: int


@dataclass(frozen=True, slots=True)
class Hold:
    """A trap for the reader."""

    trap: Trap


@dataclass(frozen=True, slots=True)
class LetGo:
    """Let every vCPU run, behind some requests."""

    before: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave the guest to whoever has paused it."""


Output = Stand | Ask | Send | Step | Hold | LetGo | Leave

_STAND = Stand()
_GOES = frozenset({State.RUNNING, State.PAUSED})
"""The guest goes on, unless it is somebody else's to let go."""
_SETTLED = _GOES | {State.STANDING}

TRANSITIONS: Mapping[tuple[State, type], frozenset[State]] = {
    (State.RUNNING, Stopped): frozenset({State.ASKING, State.STANDING}),
    (State.PAUSED, Stopped): frozenset({State.ASKING, State.STANDING}),
    # Whoever has paused it has let it go while a trap was held: it is held on, in a stop of ours.
    (State.HELD, Stopped): frozenset({State.ASKING, State.HELD}),
    (State.ASKING, Answered): frozenset({State.ASKING, State.STANDING, State.HELD}),
    (State.STANDING, Deliver): _GOES | {State.HELD},
    (State.STANDING, Settle): _SETTLED,
    (State.STANDING, Expire): _GOES | {State.PASSING},
    (State.HELD, Resume): _SETTLED | {State.HELD, State.PASSING},
    (State.HELD, Expire): _GOES | {State.PASSING},
    # Only a stop of ours has breakpoints to pass.
    (State.PASSING, Answered): frozenset({State.STANDING, State.RUNNING}),
    # The stub has not answered: as if nobody had hit, or there were nothing to pass.
    (State.ASKING, Deliver): _GOES | {State.HELD},
    (State.ASKING, Settle): _SETTLED | {State.HELD},
    (State.PASSING, Deliver): frozenset({State.HELD, State.RUNNING}),
    (State.PASSING, Settle): frozenset({State.STANDING, State.RUNNING}),
    **{(state, Taken): frozenset({State.TAKEN}) for state in State},
}
"""State and input -> the states that may be next."""


class Stops:
    """See the module."""

    def __init__(self, machine: Architecture, armed: Armed, hits: HitFinder, passage: Passage) -> None:
        """The guest runs.  What ``armed`` has when an input comes is what is trapped."""
        self.state = State.RUNNING
        self.foreign = False
        """The stop is by somebody else."""
        self.pending: deque[Hit] = deque()
        """What has hit in this stop and was not delivered yet."""
        self.since = 0.0
        """When the hold limit began to count."""
        self._delivered = self._hold_timeouts = self._held_ns = 0
        self._machine, self._armed, self._hits, self._passage = machine, armed, hits, passage
        self._question: Question | None = None
        self._held: Hit | None = None
        """What was delivered last, and is held or being passed."""

    @property
    def counters(self) -> TrapCounters:
        """Nothing is ever dropped."""
        return TrapCounters(
            delivered=self._delivered, hold_timeouts=self._hold_timeouts, held_ns=self._held_ns
        )

    def feed(self, given: Input, now: float) -> tuple[Output, ...]:
        """What is to be done, in order.  ``now``: seconds of a monotonic clock."""
        outputs: tuple[Output, ...] = ()
        if (self.state, type(given)) not in TRANSITIONS:
            return outputs
        match given:
            case Stopped():
                outputs = self._stopped(given.stop, now)
            case Answered():
                outputs = self._passed(given) if self.state is State.PASSING else self._looked(given)
            case Deliver():
                outputs = self._deliver(now)
            case Settle():
                outputs = self._settle()
            case Resume():
                outputs = self._resume(given, now)
            case Expire():
                outputs = self._expire(now)
            case Taken():
                self.state = State.TAKEN
        return outputs

    def standing(self) -> bool:
        """Whether something is held, or would be if it were asked for."""
        return self.state is State.HELD or (self.state is State.STANDING and bool(self.pending))

    def clean(self) -> tuple[Step, ...]:
        """What it takes for QEMU to keep no mark.  Before a watchpoint is removed: a mark points to it."""
        return () if self.foreign else tuple(Step(thread) for thread in self._hits.unmark())

    def _stopped(self, stop: Stop | None, now: float) -> tuple[Output, ...]:
        hit = stop is not None and stop.signal == TRAP_SIGNAL
        self.foreign = stop is not None and not hit
        self.since = now
        ours: tuple[Output, ...] = () if self.foreign else (_STAND,)
        return (*ours, *self._ask(self._hits.first(max(stop.thread, 1) if stop and hit else 0)))

    def _ask(self, question: Question | None) -> tuple[Output, ...]:
        self._question = question
        if question is not None:
            self.state = State.ASKING
            return (Ask(self._hits.requests(question)),)
        self.state = State.STANDING if self._held is None else State.HELD
        return ()

    def _looked(self, given: Answered) -> tuple[Output, ...]:
        if self._question is None:
            return ()
        hits, question = self._hits.answered(self._question, given.answers)
        self.pending += hits
        return self._ask(question)

    def _deliver(self, now: float) -> tuple[Output, ...]:
        while self.pending:
            hit = self.pending.popleft()
            word = self._armed.places.word(hit.pc) if hit.word is not None else None
            if word is None and not (hit.word is None and self._armed.code(hit.pc)):
                continue  # nobody wants it any more
            self.state, self.since, self._held = State.HELD, now, hit
            self._delivered += 1
            return _STAND, Hold(self._trap(hit, now))
        return self._settle()

    def _trap(self, hit: Hit, now: float) -> Trap:
        kind = CodeHit if hit.word is None else partial(Access, address=hit.word)
        return kind(
            vcpu=VcpuIndex(hit.thread - 1),
            asid=self._machine.asid_of(hit.root),
            pc=GuestVirtual(hit.pc),
            sequence=self._delivered,
            time_ns=int(now * 1e9),
            held=True,
            registers=hit.registers,
        )

    def _resume(self, given: Resume, now: float) -> tuple[Output, ...]:
        hit = self._held
        if hit is None or given.sequence != self._delivered:
            return ()
        if hit.same and not given.news:
            self._hits.known(hit.thread)
        self._waited(now)
        return self._go_on(hit)

    def _waited(self, now: float) -> None:
        self._held_ns += int((now - self.since) * 1e9)

    def _expire(self, now: float) -> tuple[Output, ...]:
        hit = self._held
        self._hold_timeouts += len(self.pending) + (hit is not None)
        if hit is not None:
            self._waited(now)
        else:  # what nobody took has to get past its breakpoint all the same
            hit = next((one for one in self.pending if one.word is None), None)
        self.pending.clear()
        return self._settle() if hit is None else self._go_on(hit)

    def _go_on(self, hit: Hit) -> tuple[Output, ...]:
        """A hit is done with."""
        request = self._passage.ask(hit)
        if request is not None:
            self.state, self._held = State.PASSING, hit
            return (Ask((request,)),)
        self._held = None
        self.state = State.STANDING
        return self._settle()

    def _passed(self, given: Answered) -> tuple[Output, ...]:
        hit, self._held = self._held, None
        self.state = State.STANDING
        if hit is None:
            return self._settle()
        way = self._passage.past(hit, given.answers[0])
        if isinstance(way, Skip):
            return self._settle(way.requests)
        around = [(Send(part),) if part else () for part in (way.before, way.after)]
        return (*around[0], Step(way.thread), *around[1], *self._settle())

    def _settle(self, before: tuple[bytes, ...] = ()) -> tuple[Output, ...]:
        """The guest goes on behind these requests, unless something is pending, or it is not ours."""
        if self._held is not None and self.state is State.ASKING:
            self.state = State.HELD
            return ()
        self._held = None
        if self.pending:
            self.state = State.STANDING
            return (Send(before),) if before else ()
        if self.foreign:
            self.state = State.PAUSED
            return (Leave(),)
        self.state = State.RUNNING
        steps = self.clean()
        if not steps:
            return (LetGo(before),)
        return (*((Send(before),) if before else ()), *steps, LetGo())
