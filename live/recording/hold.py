"""Makes a guest stand still while a frame is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from live.core.errors import PseError
from live.core.hypervisor import Guest
from live.core.traps import TrapSource

Still = Callable[[], bool]
"""Whether the guest has stood still since the hold began; called when the frame is complete."""
Hold = Callable[[bool], AbstractContextManager[Still]]
"""Makes the guest stand still; the argument: whether a trap holds a vCPU at this time."""


@contextlib.contextmanager
def no_hold(held: bool) -> Iterator[Still]:
    """The guest runs on, so its frames are not consistent."""
    yield lambda: False


def hold_of(guest: Guest, source: TrapSource | None) -> Hold:
    """How to make ``guest`` stand still while it is trapped by ``source`` (None: it is polled).

    At a trap whose vCPU is held, nothing is done.  If it is the only vCPU, or the source holds all of them,
    the guest stands still unless the hold runs into its limit.

    Without a held vCPU the guest is paused: in poll mode each time, else only the first time, before anything
    is armed.  Later a pause would wait for a vCPU that is held until the reader goes on.  A source that stops
    all vCPUs at each trap would take a pause for a trap, so with it the guest is never paused.
    """
    entered = 0
    registers, pauses = guest.registers, guest.pauses
    alone = source is not None and (source.holds_all or (registers is not None and len(registers.vcpus) == 1))

    @contextlib.contextmanager
    def hold(held: bool) -> Iterator[Still]:
        nonlocal entered
        entered += 1
        if held and source is not None:
            before = source.counters.hold_timeouts
            yield lambda: alone and source.counters.hold_timeouts == before
            return
        if pauses is None or (source is not None and (entered > 1 or source.holds_all)):
            yield lambda: False
            return
        with contextlib.ExitStack() as pause:
            paused = False
            with contextlib.suppress(PseError):
                pause.enter_context(pauses.standing())
                paused = True
            yield lambda: paused

    return hold
