"""Events as sentences."""

from __future__ import annotations

from collections.abc import Callable

from live.core.events import Event, ProcessEnd, ProcessExec
from live.core.text import printable
from live.output.contract import Context, Sink


class Words:
    """A `live.output.contract.Sink`: one sentence an event."""

    def __init__(self, context: Context) -> None:
        """Say whose events they are."""
        self._context = context
        self._say(f"This is {context.host}, watched in {context.mode} mode.")

    def show(self, event: Event) -> None:
        """Text that came from the guest is made printable."""
        if isinstance(event, ProcessExec):
            self._say(
                f"{event.new.pid} was {printable(event.old.comm)}, and is {printable(event.new.comm)} now."
            )
        else:
            verb = "ended" if isinstance(event, ProcessEnd) else "began"
            self._say(f"{event.process.pid} {verb}, which is {printable(event.process.comm)}.")

    def pause(self, summary: Callable[[], str]) -> None:
        """There is nothing that waits."""

    def close(self) -> None:
        """The last word."""
        self._say("That was all.")

    def _say(self, text: str) -> None:
        self._context.out.write(text + "\n")
        self._context.out.flush()


def words(context: Context) -> Sink:
    """Makes one; a `live.output.contract.Output`."""
    return Words(context)
