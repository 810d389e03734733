"""What the contract suite is given: how to attach to a guest, and how to make things happen in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from live.core.hypervisor import Guest
from live.core.memory import GuestPhysical, GuestVirtual
from live.core.system import Finder
from live.core.traps import Abi, Fence, Watchpoint, Word

Wait = Callable[[], object]
"""Returns when what was begun is over; raises if that takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function of the guest's kernel that every process of `Subject.work` comes to once."""

    address: GuestVirtual
    least: int = 0
    """How many more times it is executed meanwhile, at least (by what starts the processes, say)."""
    most: int = 0
    """The same, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A guest to be checked.

    ``open`` is all that is needed.  What is left out cannot be made to happen: the checks that need it are
    skipped, and say so.  Whoever writes an adapter should leave out little.
    """

    open: Callable[[], Guest]
    """Attach to the guest, anew each time; called when what was opened before is closed."""
    work: Callable[[int], Wait] | None = None
    """``work(n)``: n processes begin, one after the other, and end.  Returns at once."""
    functions: Sequence[Function] = ()
    """What each of those processes comes to, in this order; three at best: it begins, executes, ends."""
    fences: frozenset[Fence] = frozenset()
    """For the addresses of `functions`, but the last: where the guest may run on."""
    entries: frozenset[tuple[GuestVirtual, Abi]] = frozenset()
    """Where the guest's kernel begins a system call; needed with ``fences``."""
    accesses: frozenset[Watchpoint] = frozenset()
    """Words that each of those processes touches."""
    words: tuple[Word, ...] = ()
    """Words that change whenever such a process begins."""
    pause: Callable[[], object] | None = None
    """Somebody else pauses the guest, not through what ``open`` gave."""
    resume: Callable[[], object] | None = None
    """The same somebody lets it go on."""
    end: Callable[[], object] | None = None
    """End the guest, as if its power failed; it need not be gone yet when this returns."""
    put: Callable[[bytes], GuestPhysical] | None = None
    """Write into guest RAM, as the guest would; says where.  Always at the same gpa."""
    restore: Callable[[], object] | None = None
    """Called behind each check: whatever has happened, the guest runs again as it did."""
    systems: Sequence[Finder] = field(default=())
    """Those that find what runs in the guest; none: nothing does."""
    hold: float = 2.0
    """Seconds that a vCPU may be held: more than a reader is ever kept from its CPU on this machine."""
    patience: float = 30.0
    """Seconds after which something that has to happen has failed to."""
    quiet: float = 0.3
    """Seconds without a trap behind the end of `work`, after which none of it follows."""
