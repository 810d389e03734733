"""The contract of an output: events in, text out.

To add one: a package with a function that is an `Output`, registered as an entry point of the group
``pse.outputs`` under its name (docs/ADDING.md); ``--output NAME`` selects it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from live.core.events import Event
from live.core.system import System


@dataclass(slots=True, kw_only=True)
class Context:
    """What an output gets when it is made.

    ``out``: the stream to write to.  ``system``: the boot that the events are of; whoever made the context
    sets it anew when more is known, so a sink asks for it at each event.  ``host``: the VM's name.
    ``mode``: how it is watched.
    """

    out: TextIO
    system: System
    host: str
    mode: str


class Sink(Protocol):
    """Writes events.  It must escape text from the guest: control characters and markup of the format."""

    def show(self, event: Event) -> None:
        """Take one event, in order."""

    def pause(self, summary: Callable[[], str]) -> None:
        """No event is pending: write what was deferred.  ``summary`` returns a line of counts."""

    def close(self) -> None:
        """The last call: write what was deferred and restore the terminal."""


Output = Callable[[Context], Sink]
"""Makes a sink; it may write a header."""
