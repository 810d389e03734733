"""Makes a guest stand still while all of its memory is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from live.core.errors import PseError
from live.core.traps import TrapSource

Still = Callable[[], bool]
"""Whether the guest has stood still since it was asked to; asked when the frame is complete."""
Hold = Callable[[bool], AbstractContextManager[Still]]
"""Makes the guest stand still; the argument says whether a vCPU is held by a trap now."""


@contextlib.contextmanager
def no_hold(held: bool) -> Iterator[Still]:
    """The guest runs on: its frames are not of one moment."""
    yield lambda: False


def hold_of(guest: Any, source: TrapSource | None) -> Hold:
    """How to hold ``guest`` (see `live.hypervisors.registry`), which is trapped by ``source``.

    A trap holds its vCPU; if that is the only one, or the source stops them all, nothing else is needed, but
    the hold must not end by its limit meanwhile.  As long as nothing is trapped, the monitor pauses the
    guest; later it would wait for a vCPU that waits for us.
    """
    entered = 0
    alone = len(guest.vcpus) == 1 or (source is not None and source.mode == "gdbstub")

    @contextlib.contextmanager
    def hold(held: bool) -> Iterator[Still]:
        nonlocal entered
        entered += 1
        if held and source is not None:
            before = source.counters.hold_timeouts
            yield lambda: alone and source.counters.hold_timeouts == before
            return
        if source is not None and (entered > 1 or source.mode == "gdbstub"):
            yield lambda: False  # to a gdb stub a pause would look like a trap
            return
        with contextlib.ExitStack() as pause:
            paused = False
            with contextlib.suppress(PseError, AttributeError):
                pause.enter_context(guest.pause())
                paused = True
            yield lambda: paused

    return hold
