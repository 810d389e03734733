"""Records steps as they are taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from live.core.errors import MemoryFault
from live.core.events import Event, ProcessEnd, ProcessExec
from live.core.tracker import Tracker
from live.core.traps import AsidChange, Trap, TrapRequest
from live.recording import codec, format
from live.recording.filters import EventFilter
from live.recording.frames import take_frame
from live.recording.hold import Hold, Still, no_hold
from live.recording.live_memory import RecordingMemory
from live.recording.writer import Writer
from live.watch.stepper import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """When the whole task list is read, so that a recording shows it as it was at that moment.

    ``at``: any of "asid", "exec", "end": at every asid change, exec, end of a process.  ``whole``: with a
    frame.
    """

    at: frozenset[str] = frozenset()
    whole: bool = False

    def wanted(self, events: Sequence[Event], trap: Trap | None) -> bool:
        """Whether one is, after a step that has made these events."""
        kinds = {_MOMENTS[type(event)] for event in events if type(event) in _MOMENTS}
        if isinstance(trap, AsidChange):
            kinds.add("asid")
        return bool(kinds & self.at)


_MOMENTS = {ProcessExec: "exec", ProcessEnd: "end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """When frames (all of guest memory) are recorded.

    ``start``: at the beginning.  ``every``: at the first step after so many seconds.  ``on``: at events that
    match one of the filters.  If any of these is set, a frame is taken at the beginning, when no vCPU is
    held.  Later frames then have little to write and fit into the hold of a trap.
    """

    start: bool = False
    every: float | None = None
    on: Sequence[EventFilter] = ()

    @property
    def wanted(self) -> bool:
        """Whether any frames are taken."""
        return self.start or self.every is not None or bool(self.on)


class RecordingStepper:
    """A `live.watch.stepper.Steps` that records the steps of another one.

    When a step returns, its reads and events have been passed to the writer, so the vCPU may be resumed.
    """

    def __init__(
        self,
        steps: Steps,
        memory: RecordingMemory,
        writer: Writer,
        frames: Frames | None = None,
        hold: Hold = no_hold,
        *,
        pausable: bool = True,
        snapshots: Snapshots | None = None,
    ) -> None:
        """``steps`` must read guest memory through ``memory`` only.

        ``pausable``: ``hold`` can make the guest stand still at any step, not only at a held trap.
        """
        self._pausable, self._snapshots = pausable, snapshots or Snapshots()
        self._steps, self._memory, self._writer = steps, memory, writer
        self.tracker: Tracker = steps.tracker
        """The tracker of the wrapped steps."""
        self._frames, self._hold = frames or Frames(), hold
        self._digests: dict[bytes, int] = {}
        self._framed_at = 0.0
        self.frames = 0
        """Number of frames taken."""

    @property
    def request(self) -> TrapRequest | None:
        """See `live.watch.stepper.Steps.request`."""
        return self._steps.request

    def snapshot(self, time_ns: int, trigger: str) -> list[Event]:
        """See `live.watch.stepper.Steps.snapshot`.  Raises `TargetError` if it cannot be written."""
        return self._step(
            lambda: self._steps.snapshot(time_ns, trigger), "look", time_ns=time_ns, cause=trigger, held=False
        )

    def attach(self) -> list[Event]:
        """If frames are wanted: take a snapshot and a frame, before anything is armed; the events."""
        if not self._frames.wanted:
            return []
        with self._hold(False) as still:
            events = self.snapshot(time.time_ns(), "attach")
            self._take("start", self._writer.last_step, still)
        return events

    def trap(self, trap: Trap, time_ns: int, late_ns: int) -> list[Event]:
        """See `live.watch.stepper.Steps.trap`.  Raises `TargetError` if the recording cannot be written."""
        events = self._step(
            lambda: self._steps.trap(trap, time_ns, late_ns),
            "trap",
            time_ns=time_ns,
            late_ns=late_ns,
            detail=codec.encode_trap(trap),
            held=trap.held,
        )
        if self._snapshots.wanted(events, trap):
            events += self.snapshot(time.time_ns(), format.SNAPSHOT)
            if self._snapshots.whole:
                self._frame("snapshot", held=trap.held, after=self._writer.last_step)
        return events

    def _step(
        self,
        take: Callable[[], list[Event]],
        kind: str,
        *,
        time_ns: int,
        held: bool,
        late_ns: int = 0,
        cause: str = "",
        detail: codec.Json | None = None,
    ) -> list[Event]:
        memory, writer = self._memory, self._writer
        memory.begin()
        try:
            events = take()
        except MemoryFault as fault:
            # Recorded with its error: a replay runs into the same fault.
            error = str(fault)
            writer.step(kind, time_ns, memory.end(), late_ns=late_ns, cause=cause, detail=detail, error=error)
            raise
        except BaseException:
            memory.abort()
            raise
        step = writer.step(kind, time_ns, memory.end(), events, late_ns=late_ns, cause=cause, detail=detail)
        if any(one.matches(event) for one in self._frames.on for event in events):
            self._frame("event", held=held, after=step)
        elif self._due(held):
            self._frame("timer", held=held, after=step)
        return events

    def _due(self, held: bool) -> bool:
        if self._frames.every is None or not (held or self._pausable) or not self.frames:
            return False
        return time.monotonic() - self._framed_at >= self._frames.every

    def _frame(self, cause: str, *, held: bool, after: int) -> None:
        with self._hold(held) as still:
            self._take(cause, after, still)

    def _take(self, cause: str, after: int, still: Still) -> None:
        take_frame(self._memory, self._writer, self._digests, cause, after=after, still=still)
        self._framed_at = time.monotonic()
        self.frames += 1
