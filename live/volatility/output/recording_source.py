"""The event source of `linux.pse` for recordings."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from live.core.errors import TargetError
from live.core.events import Event, is_kernels
from live.recording.opening import is_recording, open_recording
from live.volatility.output.sources import Options


def meant(location: str) -> bool:
    """Whether a URL names a file that claims to be a recording."""
    if urllib.parse.urlparse(location).scheme != "file":
        return False
    try:
        with _path(location).open("rb") as file:
            return is_recording(file.read(100))
    except OSError:
        return False


class RecordingSource:
    """The events as recorded; a `Source`.  (`pse replay` derives them again from memory.)"""

    kernel = None

    def __init__(self, options: Options) -> None:
        """Nothing is opened before `events`.  Raises `TargetError` if ``--next`` was given."""
        if options.following:
            raise TargetError("--next takes images; a recording has its own time")
        self._kernel_threads = options.kernel_threads
        self._path = _path(options.location)
        self._notes: list[str] = []

    def events(self) -> Iterator[Event]:
        """The recorded events, in order.  Raises `TargetError` if the file is damaged."""
        with open_recording(self._path) as recording:
            head = recording.header
            self._notes.append(f"{head.target}: {head.title}, recorded in {head.mode} mode: {head.guarantee}")
            if recording.end() is None:
                self._notes.append(
                    "its recorder was killed, or has not ended yet: this is what it had written"
                )
            missed = 0
            for _, _, event in recording.events():
                missed = max(missed, event.occasion.missed)
                if self._kernel_threads or not is_kernels(event):
                    yield event
            if missed:
                self._notes.append(f"{missed} tasks came and went unseen")

    def notes(self) -> Sequence[str]:
        """Guest, system and mode of the recording, and what it misses."""
        return self._notes


def _path(location: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(location).path))
