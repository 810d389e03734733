"""The callback API: a guest in, events out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from live.core.events import Event, Process, ProcessEnd, ProcessStart, is_kernels
from live.core.tracker import Counts
from live.watch.asid_stepper import AsidStepper
from live.watch.session import Session
from live.watch.watchers import Cost, Trapper, watcher_of

StartCallback = Callable[[Process], None]
ExecCallback = Callable[[Process, Process], None]


class Monitor:
    """Watches one guest, in the best mode that it offers.

    Callbacks are called at once, in trap modes while the vCPU is held: they may read the guest's
    memory as it is at that moment, and should be quick.  `events` hands the same events to a loop,
    a little later, with the guest running.  Without callbacks the guest runs on while an event is read
    (`live.core.traps.TrapRequest.fences`), which costs it less::

        with Session() as session:
            monitor = Monitor(session)

            @monitor.on_process_start
            def started(process):
                print(process.pid, process.comm)

            monitor.run(duration=60)
    """

    def __init__(
        self,
        session: Session,
        *,
        mode: str = "auto",
        interval: float = 0.01,
        kernel_threads: bool = False,
    ) -> None:
        """Nothing is read or armed until `events` or `run`.

        ``mode``: that of one of the guest's offers, "poll", or "auto" for the best there is.
        ``interval``: seconds between two snapshots in poll mode.  Events of kernel threads are left out
        unless ``kernel_threads``.  Raises `TargetError` if the guest does not offer ``mode``.
        """
        self._kernel_threads = kernel_threads
        self.choice = session.choose(mode)
        """The mode, and why it is not a better one."""
        self.mode, self.guarantee = self.choice.mode, self.choice.guarantee
        with contextlib.ExitStack() as undo:
            undo.callback(self.choice.close)
            stepper = self._stepper = session.stepper(self.choice)
            self._tracker = stepper.tracker
            self._watcher = watcher_of(session, self.choice, stepper, interval)
            registers = session.guest.registers
            self._alone = registers is not None and len(registers.vcpus) == 1
            functions = self.traps and stepper.request is None
            self._fences = session.os.points().fences if functions else frozenset()
            undo.pop_all()
        self._start: list[StartCallback] = []
        self._exec: list[ExecCallback] = []
        self._end: list[StartCallback] = []

    @property
    def traps(self) -> bool:
        """Whether events are trapped, not found by snapshots."""
        return self.choice.source is not None

    @property
    def counts(self) -> Counts:
        """Events so far, and what was missed."""
        return self._tracker.counts

    @property
    def cost(self) -> Cost:
        """What watching cost so far."""
        return self._watcher.cost

    def live(self) -> list[Process]:
        """The processes that run now, as announced."""
        return [p for p in self._tracker.live() if self._kernel_threads or not p.kernel]

    def on_process_start(self, function: StartCallback) -> StartCallback:
        """Call ``function(process)`` at every start; usable as a decorator."""
        self._start.append(function)
        return function

    def on_process_exec(self, function: ExecCallback) -> ExecCallback:
        """Call ``function(old, new)`` at every exec, between the end of old and the start of new."""
        self._exec.append(function)
        return function

    def on_process_end(self, function: StartCallback) -> StartCallback:
        """Call ``function(process)`` at every end; `Process.exited` says how, if it died."""
        self._end.append(function)
        return function

    def run(self, *, duration: float | None = None, count: int | None = None) -> None:
        """Watch until ``duration`` seconds or ``count`` events have passed, or for ever."""
        for _ in self.events(duration=duration, count=count):
            pass

    def events(self, *, duration: float | None = None, count: int | None = None) -> Iterator[Event]:
        """The events as they happen, callbacks called first.

        Raises `GuestGone` when the guest ends, reboots or can no longer be read.
        """
        delivered = 0
        batches = self.batches(duration=duration)
        try:
            for batch in batches:
                for event in batch:
                    yield event
                    delivered += 1
                    if delivered == count:
                        return
        finally:
            batches.close()

    def batches(self, *, duration: float | None = None) -> Generator[list[Event], None, None]:
        """Like `events`, but all events of one step at once, and an empty list when nothing happened.

        Whoever prints can print many at a time, and when there is time: a trap that comes meanwhile
        holds its vCPU until the printing is done.
        """
        deadline = None if duration is None else time.monotonic() + duration
        ready: list[Event] = []
        if not (self._start or self._exec or self._end):
            self._fence()

        def deliver(event: Event) -> None:
            if self._kernel_threads or not is_kernels(event):
                self._call(event)
                ready.append(event)

        try:
            for _ in self._watcher.run(deadline, deliver):
                batch, ready[:] = ready[:], []
                yield batch
        finally:
            self.close()

    def _fence(self) -> None:
        """Nobody is called back, so the guest may run on while an event is read."""
        if isinstance(self._stepper, AsidStepper):
            # On another vCPU a parent may reap its child, and never change its asid.
            if self._alone:
                self._stepper.fence()
        elif isinstance(self._watcher, Trapper):
            self._watcher.request = replace(self._watcher.request, fences=self._fences)

    def close(self) -> None:
        """Remove every trap and let the guest run on; `events` and `run` do it when they end."""
        self.choice.close()

    def _call(self, event: Event) -> None:
        if isinstance(event, ProcessStart):
            for start in self._start:
                start(event.process)
        elif isinstance(event, ProcessEnd):
            for end in self._end:
                end(event.process)
        else:
            for exec_ in self._exec:
                exec_(event.old, event.new)
