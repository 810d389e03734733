"""Selecting events: ``exec:*/nc``, a number, ``first`` or ``last``."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from live.core.errors import TargetError
from live.core.events import Event, Process
from live.output.columns import action, process_of
from live.recording.file import Recorded, Recording

KINDS = ("start", "exec", "end", "any")
SYNTAX = (
    "KIND:PATTERN, where KIND is start, exec, end or any, and PATTERN is matched (* ? [...]) against the "
    "path of the executable if it has a slash, else against the path's last part and comm; the marks "
    "(deleted) and (unreachable) may be left out"
)


class EventFilter:
    """A filter ``KIND:PATTERN``, see `SYNTAX`."""

    def __init__(self, text: str) -> None:
        """Parse ``text``.  Raises `TargetError` if it is no filter."""
        kind, colon, pattern = text.partition(":")
        if not colon or kind not in KINDS or not pattern:
            raise TargetError(f"{text} is no event filter; write {SYNTAX}; for example exec:*/nc")
        self.text, self._kind, self._pattern = text, kind, pattern

    def matches(self, event: Event) -> bool:
        """Whether kind and process of the event match."""
        if self._kind not in ("any", action(event)):
            return False
        return any(fnmatch.fnmatchcase(name, self._pattern) for name in self._names(process_of(event)))

    def _names(self, process: Process) -> Iterator[str]:
        if process.exe is not None:
            for path in {process.exe, process.exe.removeprefix("(unreachable)").removesuffix(" (deleted)")}:
                yield path if "/" in self._pattern else path.rpartition("/")[2]
        if "/" not in self._pattern:
            yield process.comm


def find_event(recording: Recording, text: str) -> Recorded:
    """The event that ``text`` names: a number, ``first``, ``last``, or the first match of a filter.

    Raises `TargetError` if there is none.
    """
    count = recording.count("event")
    if text in ("first", "last"):
        return recording.event(1 if text == "first" else count)
    if text.isascii() and text.isdigit():
        return recording.event(min(int(text), 1 << 60))
    wanted = EventFilter(text)
    for recorded in recording.events():
        if wanted.matches(recorded.event):
            return recorded
    raise TargetError(
        f"none of the {count} events in {recording.path} matches {text}; list them with: pse replay"
    )
