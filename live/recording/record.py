"""Watches a guest like `live.watch.monitor`, and writes what a replay needs to a recording."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from live.core.errors import GuestGone, TargetError
from live.core.events import Event, is_kernels
from live.core.system import System
from live.core.tracker import Counts
from live.recording.header import Header
from live.recording.hold import hold_of
from live.recording.live_memory import RecordingMemory
from live.recording.stepper import Frames, RecordingStepper, Snapshots
from live.recording.writer import Writer
from live.watch.asid_stepper import MODES, AsidStepper
from live.watch.session import Session
from live.watch.stepper import Steps
from live.watch.watchers import Cost, watcher_of

_SWITCH_S = 0.0005


class Recorder:
    """Records one guest::

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
        snapshots: Snapshots | None = None,
        force: bool = False,
        level: int = 3,
    ) -> None:
        """Create the file; nothing is armed until `events`.

        ``mode`` and ``interval`` as for `live.watch.monitor.Monitor`; ``frames``: when all of memory is
        recorded; ``snapshots``: when the whole task list is; ``level``: of zstd compression.  Raises
        `TargetError` if the file exists (without ``force``) or if the guest does not offer the mode.
        """
        self._session = session
        self.choice = session.choose(mode)
        """The chosen mode, its guarantee, and why better modes were not chosen."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.choice.close)
            if snapshots is not None and "asid" in snapshots.at and self.choice.mode not in MODES:
                raise TargetError("asid changes are trapped in asid and diff mode only; choose one of these")
            self._memory = RecordingMemory(session.guest.memory)
            self.writer = Writer(path, self._header(), session.os.symbols(), force=force, level=level)
            undo.callback(self.writer.close, "could not begin")
            source = self.choice.source
            self.steps = RecordingStepper(
                self._stepper(snapshots or Snapshots()),
                self._memory,
                self.writer,
                frames,
                hold_of(session.guest, source),
                pausable=source is None,
                snapshots=snapshots,
            )
            self._watcher = watcher_of(session, self.choice, self.steps, interval)
            undo.pop_all()

    def _header(self) -> Header:
        session = self._session
        return Header(
            writer=f"pse {_version()}",
            created_ns=time.time_ns(),
            target=session.name,
            mode=self.choice.mode,
            guarantee=self.choice.guarantee,
            title=session.os.title,
            os=session.os.name,
            machine=session.machine.name,
            kernel=session.os.recorded(),
            system=session.system,
            segments=tuple(session.guest.memory.segments),
        )

    def _stepper(self, snapshots: Snapshots) -> Steps:
        """The system over memory that notes its reads; making it is the first step of the recording."""
        session = self._session
        self._memory.begin()
        system = self._os = session.os.over(self._memory)
        stepper = session.stepper(self.choice, system)
        self.writer.step("setup", time.time_ns(), self._memory.end())
        if "asid" in snapshots.at and isinstance(stepper, AsidStepper):
            stepper.trap_every_change()
        return stepper

    @property
    def counts(self) -> Counts:
        """Events so far, and tasks missed."""
        return self.steps.tracker.counts

    @property
    def system(self) -> System:
        """Which boot of which host this is, as known now."""
        return self._os.system

    @property
    def cost(self) -> Cost:
        """The cost of watching so far."""
        return self._watcher.cost

    def events(
        self, *, duration: float | None = None, count: int | None = None, kernel_threads: bool = True
    ) -> Iterator[Event]:
        """The events as they happen.  All are recorded; those of kernel threads are yielded if wanted.

        ``duration`` in seconds; the iterator ends after the step that reaches ``count`` events.  Raises
        `GuestGone`, and `TargetError` if the recording cannot be written.
        """
        deadline = None if duration is None else time.monotonic() + duration
        ready: deque[Event] = deque()
        delivered, reason = 0, "done"
        switch = sys.getswitchinterval()
        # The default interval (5 ms) is how long a held vCPU might wait for the writing thread's GIL.
        sys.setswitchinterval(_SWITCH_S)
        try:
            ready.extend(self.steps.attach())
            for _ in self._watcher.run(deadline, ready.append):
                while ready:
                    event = ready.popleft()
                    if kernel_threads or not is_kernels(event):
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
        """Remove every trap and complete the file; `events` does so when it ends."""
        self.choice.close()
        self.writer.close(reason)

    def __enter__(self) -> Recorder:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close."""
        self.close()


def _version() -> str:
    try:
        return importlib.metadata.version("pse")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
