"""Watches a guest as `live.watch.monitor` does, and writes down what it takes to see it all again."""

from __future__ import annotations

import importlib.metadata
import lzma
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from live.core.errors import GuestGone, SymbolsMissing
from live.core.events import Event
from live.core.tracker import Counts
from live.linux.details import ProcessReader
from live.linux.kernel import LinuxKernel
from live.recording.filters import wanted
from live.recording.header import Header
from live.recording.hold import hold_of
from live.recording.live_memory import RecordingMemory
from live.recording.stepper import Frames, RecordingStepper
from live.recording.writer import Writer
from live.watch.session import Session
from live.watch.stepper import Stepper
from live.watch.watchers import Cost, Poller, Trapper

_SWITCH_S = 0.0005


class Recorder:
    """One recording of one guest::

    with Session() as session, Recorder(session, "run.pse") as recorder:
        for event in recorder.events(duration=60):
            ...
    """

    def __init__(
        self,
        session: Session,
        path: Path | str,
        *,
        mode: str = "auto",
        interval: float = 0.01,
        frames: Frames | None = None,
        force: bool = False,
        level: int = 3,
    ) -> None:
        """Create the file; nothing is armed until `events`.

        ``mode`` and ``interval`` as for `live.watch.monitor.Monitor`; ``frames``: when all of memory is
        recorded; ``level``: zstd's.  Raises `TargetError` if the file exists and not ``force``, or if the
        guest does not offer the mode.
        """
        self._session = session
        self.choice = session.choose(mode)
        """The mode, what it guarantees, and why it is not a better one."""
        self._source = self.choice.source
        try:
            self._memory = RecordingMemory(session.guest.memory)
            self.writer = Writer(
                path, self._header(), _symbols(session.kernel.symbols.path), force=force, level=level
            )
            try:
                stepper = self._stepper()
                hold = hold_of(session.guest, self._source)
                self.steps = RecordingStepper(
                    stepper, self._memory, self.writer, frames, hold, pausable=self._source is None
                )
                self._watcher = (
                    Trapper(session, self.steps, self._source, session.request(self._source))
                    if self._source
                    else Poller(session, self.steps, interval)
                )
            except BaseException:
                self.writer.close("could not begin")
                raise
        except BaseException:
            if self._source is not None:
                self._source.close()
            raise

    def _header(self) -> Header:
        session, found = self._session, self._session.found
        return Header(
            writer=f"pse {_version()}",
            created_ns=time.time_ns(),
            target=session.name,
            mode=self.choice.mode,
            guarantee=self.choice.guarantee,
            banner=found.banner,
            build_id=found.build_id,
            release=found.release,
            text=found.text,
            place=session.kernel.place,
            system=session.system,
            segments=tuple(session.guest.memory.segments),
        )

    def _stepper(self) -> Stepper:
        """The same readers again, over memory that notes what they read; the first step of the recording."""
        session = self._session
        self._memory.begin()
        kernel = LinuxKernel(self._memory, session.kernel.symbols, session.kernel.place)
        self.writer.step("setup", time.time_ns(), self._memory.end())
        return Stepper(kernel, ProcessReader(kernel, session.system.boot_ns))

    @property
    def counts(self) -> Counts:
        """Events so far, and what was missed."""
        return self.steps.tracker.counts

    @property
    def cost(self) -> Cost:
        """What watching cost so far."""
        return self._watcher.cost

    def events(
        self, *, duration: float | None = None, count: int | None = None, kernel_threads: bool = True
    ) -> Iterator[Event]:
        """The events as they happen; all are recorded, those of kernel threads given if wanted.

        Ends after the step that brings the number to ``count`` at least.  Raises `GuestGone`, `TargetError`
        when the recording cannot be written any more.
        """
        deadline = None if duration is None else time.monotonic() + duration
        ready: deque[Event] = deque()
        delivered, reason = 0, "done"
        switch = sys.getswitchinterval()
        # A held vCPU must not wait 5 ms each time until the writing thread lets go of the interpreter.
        sys.setswitchinterval(_SWITCH_S)
        try:
            ready.extend(self.steps.attach())
            for _ in self._watcher.run(deadline, ready.append):
                while ready:
                    event = ready.popleft()
                    if kernel_threads or wanted(event):
                        delivered += 1
                        yield event
                if count is not None and delivered >= count:
                    return
        except GuestGone as error:
            reason = str(error)
            raise
        except BaseException as error:
            reason = type(error).__name__
            raise
        finally:
            sys.setswitchinterval(switch)
            self.close(reason)

    def close(self, reason: str = "closed") -> None:
        """Remove every trap and complete the file; `events` does it when it ends."""
        if self._source is not None:
            self._source.close()
        self.writer.close(reason)

    def __enter__(self) -> Recorder:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close."""
        self.close()


def _symbols(path: Path) -> bytes:
    """The text of an ISF file.  Raises `SymbolsMissing`."""
    try:
        raw = path.read_bytes()
        return lzma.decompress(raw) if path.suffix == ".xz" else raw
    except (OSError, lzma.LZMAError) as error:
        raise SymbolsMissing(f"{path} cannot be read ({error}); delete it and run again") from error


def _version() -> str:
    try:
        return importlib.metadata.version("pse")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
