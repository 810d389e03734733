"""What is known of an asid, and what makes it known: the state machine of the modes that trap asid changes.

Theory of operation
-------------------
A process cannot run before a vCPU has changed to its asid, and does nothing that counts without a system
call.  So we look at each change to an asid that is not *settled*, and at each system call in one, while the
vCPU is held.  An asid is settled when its tasks are complete: nothing is to be learnt of it until one of the
watched words moves.

What a trap proves
------------------
* A task that makes a system call is not inside another one.  So at a system call no task of the calling asid
  is transient, whatever its flags say: there an exec is complete, before the first system call of the image.
* A word that has moved: tasks came, went or died since the asid change before, on whatever vCPU.  Nothing
  of a process can be used again before, because its page tables are in use until the next asid change.
* A call that may make a process in the *same* asid (vfork): no asid change will tell of that one, so the
  asid is not settled until the child was seen, or the caller has made another call.

Which trap is worth which look is data, too: `LOOKS`.

Blind
-----
A process in the asid of another one that makes no system call, or is made by one that the operating system
does not name; one that is made, dies and is reaped between two asid changes on all vCPUs; an image that makes
no system call is seen when something else makes us look.  All are counted from the system's own counters, or
seen late.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class AsidMode(str, enum.Enum):
    """How much is known beside the task list."""

    ASID = "asid"
    """What the operating system's `live.core.system.AsidRules` say."""
    DIFF = "diff"
    """Nothing: the control.  A snapshot at every asid change, tasks inside execve taken as they look."""


class Standing(str, enum.Enum):
    """What is known of one asid."""

    NEW = "new"
    """Nothing; so it is with all that are not kept."""
    PENDING = "pending"
    """One of its tasks is transient: it is inside execve, or not complete yet."""
    SHARED = "shared"
    """A call was made in it that may make another process in it."""
    SETTLED = "settled"
    """Its tasks are complete."""
    FOREIGN = "foreign"
    """No task on the list has it: an address space of the kernel's own."""


class Seen(str, enum.Enum):
    """What a trap, or a snapshot, shows of an asid."""

    COMPLETE = "complete"
    """A task has it, and none that is transient."""
    TRANSIENT = "transient"
    """A transient task has it."""
    UNOWNED = "unowned"
    """The last task that had it has another one, or none."""
    STRANGE = "strange"
    """A vCPU runs in it, and no task on the whole list has it."""
    LEFT = "left"
    """The vCPU that its only task ran on has changed to an asid that is not known: it may be an exec."""
    SHARES = "shares"
    """A call is being made in it that may make a process in the same asid."""
    ANSWERED = "answered"
    """The process that such a call has made was seen, or its caller goes on."""


STANDINGS: Mapping[tuple[Standing, Seen], Standing] = MappingProxyType(
    {
        (Standing.NEW, Seen.COMPLETE): Standing.SETTLED,
        (Standing.NEW, Seen.TRANSIENT): Standing.PENDING,
        (Standing.NEW, Seen.STRANGE): Standing.FOREIGN,
        (Standing.NEW, Seen.SHARES): Standing.SHARED,
        (Standing.PENDING, Seen.COMPLETE): Standing.SETTLED,
        (Standing.PENDING, Seen.SHARES): Standing.SHARED,
        (Standing.PENDING, Seen.UNOWNED): Standing.NEW,
        (Standing.SHARED, Seen.ANSWERED): Standing.SETTLED,
        (Standing.SHARED, Seen.UNOWNED): Standing.NEW,
        (Standing.SETTLED, Seen.TRANSIENT): Standing.PENDING,
        (Standing.SETTLED, Seen.SHARES): Standing.SHARED,
        (Standing.SETTLED, Seen.LEFT): Standing.NEW,
        (Standing.SETTLED, Seen.UNOWNED): Standing.NEW,
        (Standing.FOREIGN, Seen.COMPLETE): Standing.SETTLED,
        (Standing.FOREIGN, Seen.TRANSIENT): Standing.PENDING,
        (Standing.FOREIGN, Seen.SHARES): Standing.SHARED,
    }
)
"""What becomes of an asid; a pair that is not listed changes nothing."""

CALM = frozenset({Standing.SETTLED, Standing.FOREIGN})
"""What is not trapped."""


class Cause(str, enum.Enum):
    """What a trap is."""

    MOVED = "a word has moved, and it is not told which one"
    MOVED_HERE = "words have moved"
    CHANGE = "change to an unsettled asid"
    OFTEN = "one more change to an asid of which nothing comes"
    OPENING = "call that may make a process in its caller's asid"
    CALL = "call in an unsettled asid"
    OTHER = "call in a settled asid, or change to one"


class Look(str, enum.Enum):
    """How much is read at a trap."""

    NOTHING = "nothing"
    CALLER = "the task that makes the call"
    WORDS = "the tasks of the words, and the end of the task list"
    LIST = "the task list"


LOOKS: Mapping[Cause, Look] = MappingProxyType(
    {
        Cause.MOVED: Look.LIST,
        Cause.MOVED_HERE: Look.WORDS,
        # Whoever runs in it is complete at its first system call, and cannot be before that.
        Cause.CHANGE: Look.NOTHING,
        Cause.OFTEN: Look.LIST,
        # Children of the calls before it may have died in this asid, which no asid change has told.
        Cause.OPENING: Look.LIST,
        Cause.CALL: Look.CALLER,
        Cause.OTHER: Look.NOTHING,
    }
)


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/LIFECYCLE.md."""
    lines = ["stateDiagram-v2", "    [*] --> new"]
    lines += [f"    {old.value} --> {new.value}: {seen.value}" for (old, seen), new in STANDINGS.items()]
    return "\n".join(lines)
