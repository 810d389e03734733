"""The state machine of a thread group: which moment, in which state, emits which events.

Theory of operation
-------------------
For each identity the tracker is in one of five states.  ATTACHED: it was on the task list when we
attached, and has not been shown.  ABSENT: it was not on that list, and nothing has been seen of it.
LIVE: its start was emitted.  DEAD: it died, and may be a zombie still.  GONE: it has left the task
list.

Moments come from traps, which report them exactly, or from the difference of two snapshots, which
implies them (`live.core.snapshot`).  Both may report the same moment: a snapshot may find a child
on the task list before the trap of its fork is handled.  Therefore a moment that repeats what is
known leads back to the same state and emits nothing: *an extra snapshot changes nothing*.

The kernel's transient states have no state here.  A trap is taken where the kernel has finished the
step: the child is complete, the new image is installed, the last thread is leaving.  A snapshot
leaves out tasks that are inside execve.  An ATTACHED identity stays so for longer than the first
snapshot only if its task was inside execve then.

Rules
-----
* `TRANSITIONS` has every case, the ignored ones included; the diagram in docs/LIFECYCLE.md is
  generated from it.
* A pair that it does not list cannot happen on a kernel that keeps its own rules.  The tracker
  counts it (`Counts.unexpected`) and ignores it; it is never fatal, because the guest may be hostile.

Known warts
-----------
* ABSENT + DEATH emits a start and an end together: its birth was not seen.  Both events are true,
  the start is late, and it is counted (`Counts.late`).
* ATTACHED + CORPSE emits nothing, as for a zombie.  If the task was inside execve when we attached,
  and a snapshot finds it dead before the trap of its death is handled, then it is never shown, and
  not counted as missed either.
* GONE is forgotten after a bounded number of identities (`live.core.tracker`).  A trap that is
  handled even later is taken for one of a new process.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from live.core.snapshot import Moment


class State(str, enum.Enum):
    """What is known of one identity."""

    ATTACHED = "attached"
    """It was on the task list when we attached, and has not been shown."""
    ABSENT = "absent"
    """It was not on the task list when we attached, and has not been seen since."""
    LIVE = "live"
    """Its start was emitted, its end was not."""
    DEAD = "dead"
    """It has died; it may still be on the task list, as a zombie."""
    GONE = "gone"
    """It has left the task list.  A trap of it may still have to be handled."""


class Emit(str, enum.Enum):
    """An event that a transition emits."""

    START_RUNNING = "start(running)"
    START_FORK = "start(fork)"
    START_EXEC = "start(exec)"
    END_EXEC = "end(exec)"
    """The end of the old image."""
    EXEC = "exec"
    """The change from the old image to the new one."""
    END = "end(exit|signal)"
    """The end of the thread group; its exit code says which of the two."""
    END_GONE = "end(gone)"
    """The end of a thread group whose death was not seen; ``exit`` or ``signal`` if its freed task tells."""


class Transition(NamedTuple):
    """The state after, and the events in the order in which they are emitted.

    ``late``: the start is emitted only at the death, and is counted in `Counts.late`.
    """

    state: State
    emits: tuple[Emit, ...] = ()
    late: bool = False


TRANSITIONS: Mapping[tuple[State, Moment], Transition] = MappingProxyType(
    {
        (State.ATTACHED, Moment.PRESENT): Transition(State.LIVE, (Emit.START_RUNNING,)),
        (State.ATTACHED, Moment.CORPSE): Transition(State.DEAD),
        (State.ATTACHED, Moment.FORK): Transition(State.LIVE, (Emit.START_FORK,)),
        (State.ATTACHED, Moment.EXEC): Transition(State.LIVE, (Emit.START_EXEC,)),
        (State.ATTACHED, Moment.DEATH): Transition(State.DEAD, (Emit.START_RUNNING, Emit.END)),
        (State.ABSENT, Moment.FORK): Transition(State.LIVE, (Emit.START_FORK,)),
        (State.ABSENT, Moment.EXEC): Transition(State.LIVE, (Emit.START_EXEC,)),
        (State.ABSENT, Moment.DEATH): Transition(State.DEAD, (Emit.START_FORK, Emit.END), late=True),
        (State.LIVE, Moment.PRESENT): Transition(State.LIVE),
        (State.LIVE, Moment.FORK): Transition(State.LIVE),
        (State.LIVE, Moment.EXEC): Transition(State.LIVE, (Emit.END_EXEC, Emit.EXEC, Emit.START_EXEC)),
        (State.LIVE, Moment.REPEAT): Transition(State.LIVE),
        (State.LIVE, Moment.DEATH): Transition(State.DEAD, (Emit.END,)),
        (State.LIVE, Moment.REAP): Transition(State.GONE, (Emit.END_GONE,)),
        (State.DEAD, Moment.CORPSE): Transition(State.DEAD),
        (State.DEAD, Moment.DEATH): Transition(State.DEAD),
        (State.DEAD, Moment.REAP): Transition(State.GONE),
        # A trap from before the snapshot that found it gone.
        (State.GONE, Moment.FORK): Transition(State.GONE),
        (State.GONE, Moment.EXEC): Transition(State.GONE),
        (State.GONE, Moment.DEATH): Transition(State.GONE),
        # A later snapshot has it again: the list lied.  RETURN is followed by FORK or EXEC.
        (State.GONE, Moment.PRESENT): Transition(State.LIVE, (Emit.START_RUNNING,)),
        (State.GONE, Moment.CORPSE): Transition(State.DEAD),
        (State.GONE, Moment.RETURN): Transition(State.ABSENT),
    }
)


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/LIFECYCLE.md."""
    lines = ["stateDiagram-v2", "    [*] --> attached", "    [*] --> absent"]
    for (state, moment), (after, emits, late) in TRANSITIONS.items():
        label = moment.value + (f": {', '.join(emit.value for emit in emits)}" if emits else "")
        lines.append(f"    {state.value} --> {after.value}: {label}{', late' if late else ''}")
    return "\n".join(lines)
