"""The state machine of a thread group: which moment, in which state, makes which events.

Theory of operation
-------------------
A thread group is unknown to us (ABSENT), LIVE, or DEAD and perhaps not reaped yet.  Moments come
from traps, which report them exactly, or from the difference of two looks, which implies them.
Both may report the same moment (a look sees a child on the task list before its trap arrives);
therefore every transition that repeats what is already known leads back to its own state and
emits nothing: *an extra look changes nothing*.

The kernel's transient states never enter: traps sit where the kernel has finished the step
(the child is complete, the new image is installed, the last thread is leaving), and a look
leaves out tasks that are inside execve.  That is the whole treatment of transients; what the
first `osi_pse` did with many states and the next system call, the place of the trap does here.

Rules
-----
* `TRANSITIONS` is the truth; the diagram in docs/LIFECYCLE.md is generated from it.
* A pair that it does not list cannot happen on a kernel that keeps its own rules.  It is counted
  and ignored, never fatal: the guest is hostile.

Known warts
-----------
* ABSENT + DEATH emits a start and an end together: both are true, the start is late, and it is
  counted as such.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from live.core.snapshot import Moment


class State(str, enum.Enum):
    """What we know of one identity."""

    ABSENT = "absent"
    LIVE = "live"
    DEAD = "dead"


class Emit(str, enum.Enum):
    """An event that a transition makes."""

    START_RUNNING = "start(running)"
    START_FORK = "start(fork)"
    START_EXEC = "start(exec)"
    END_EXEC = "end(exec)"
    EXEC = "exec"
    END = "end(exit|signal)"
    END_GONE = "end(gone)"


class Transition(NamedTuple):
    """The state after, and the events in the order in which they are emitted."""

    state: State
    emits: tuple[Emit, ...] = ()


TRANSITIONS: Mapping[tuple[State, Moment], Transition] = MappingProxyType(
    {
        (State.ABSENT, Moment.PRESENT): Transition(State.LIVE, (Emit.START_RUNNING,)),
        (State.ABSENT, Moment.CORPSE): Transition(State.DEAD),
        (State.ABSENT, Moment.FORK): Transition(State.LIVE, (Emit.START_FORK,)),
        (State.ABSENT, Moment.EXEC): Transition(State.LIVE, (Emit.START_EXEC,)),
        (State.ABSENT, Moment.DEATH): Transition(State.DEAD, (Emit.START_FORK, Emit.END)),
        (State.LIVE, Moment.PRESENT): Transition(State.LIVE),
        (State.LIVE, Moment.FORK): Transition(State.LIVE),
        (State.LIVE, Moment.EXEC): Transition(State.LIVE, (Emit.END_EXEC, Emit.EXEC, Emit.START_EXEC)),
        (State.LIVE, Moment.DEATH): Transition(State.DEAD, (Emit.END,)),
        (State.LIVE, Moment.REAP): Transition(State.ABSENT, (Emit.END_GONE,)),
        (State.DEAD, Moment.CORPSE): Transition(State.DEAD),
        (State.DEAD, Moment.DEATH): Transition(State.DEAD),
        (State.DEAD, Moment.REAP): Transition(State.ABSENT),
    }
)


def diagram() -> str:
    """The table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", "    [*] --> absent"]
    for (state, moment), (after, emits) in TRANSITIONS.items():
        label = moment.value + (f": {', '.join(emit.value for emit in emits)}" if emits else "")
        lines.append(f"    {state.value} --> {after.value}: {label}")
    return "\n".join(lines)
