"""Where the events of `linux.pse` come from: one class for each kind of input, chosen by what ``-f`` names.

Theory of operation
-------------------
A source yields `live.core.events.Event` in order and says, in sentences, what the user should know.  A single
image has no past: it shows what is running, and of the dead what can still be seen (zombies, and
`task_struct` objects in freed memory).  A series of images of one boot goes through the same tracker as a
live guest: each image is one snapshot. A new kind of input is one class and one line in `KINDS`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import urllib.parse
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from live.core.errors import GuestGone, MemoryFault, TargetError
from live.core.events import EndReason, Event, ExitStatus, Occasion, Process, ProcessEnd, ProcessExec
from live.core.snapshot import Snapshot, Task
from live.core.tracker import Tracker
from live.linux import dead
from live.linux.kernel import LinuxKernel
from live.output.columns import process_of, reason
from live.volatility.input.finder import Progress
from live.volatility.input.guest_file import SCHEMES, target_of
from live.volatility.input.image import Image, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for.

    ``location`` is the URL of ``-f``, ``following`` those of ``--next``.  ``duration`` (seconds) bounds a
    live run, ``count`` the events shown; of these, ``pids`` are the only ones if there are any, and ``new``
    leaves out what was running already.
    """

    location: str
    following: tuple[str, ...] = ()
    duration: float | None = None
    count: int | None = None
    pids: frozenset[int] = frozenset()
    new: bool = False
    kernel_threads: bool = False
    progress: Progress | None = None


class Source(Protocol):
    """One input; `notes` grows while `events` runs.

    A source whose memory can be looked at between two events also has ``kernel``, a `LinuxKernel` or None.
    """

    def events(self) -> Iterator[Event]:
        """The events, oldest first.  Raises `PseError`."""

    def notes(self) -> Sequence[str]:
        """What the user should know, a sentence each."""


class LiveSource:
    """A running guest."""

    def __init__(self, options: Options) -> None:
        """Attaches when `events` is asked for."""
        if options.following:
            raise TargetError("--next takes images; a live guest is watched as long as --duration says")
        self._scheme = urllib.parse.urlparse(options.location).scheme
        self._target = target_of(options.location)
        self._options = options
        self._notes: list[str] = []
        self.kernel: LinuxKernel | None = None

    def events(self) -> Iterator[Event]:
        """As they happen, until the bounds are reached or the guest ends."""
        from live.watch.monitor import Monitor  # noqa: PLC0415 -- an image needs none of it
        from live.watch.session import Session  # noqa: PLC0415

        options = self._options
        with Session(self._target, hypervisor=self._scheme, progress=options.progress) as session:
            self._notes += session.found.notes
            self.kernel = session.kernel
            # A renderer that fails (`| head`) leaves this generator to the interpreter's last moments, when
            # the monitor's event loop can no longer be closed.
            atexit.register(session.close)
            monitor = Monitor(session, kernel_threads=options.kernel_threads)
            self._notes.append(f"{session.name}: {monitor.mode} mode: {monitor.guarantee}")
            try:
                yield from monitor.events(duration=options.duration)
            except GuestGone as error:
                self._notes.append(str(error))
            finally:
                atexit.unregister(session.close)
            if monitor.counts.missed:
                self._notes.append(f"{monitor.counts.missed} tasks came and went unseen")

    def notes(self) -> Sequence[str]:
        """Those of the session and the monitor."""
        return self._notes


class ImageSource:
    """One image, or a series of images of one boot."""

    def __init__(self, options: Options) -> None:
        """Nothing is opened yet."""
        self._options = options
        self._notes: list[str] = []
        self._image: Image | None = None

    @property
    def kernel(self) -> LinuxKernel | None:
        """That of the image which the last event is of."""
        return self._image.kernel if self._image is not None else None

    def events(self) -> Iterator[Event]:
        """What is running in the first image, then what changed; the dead of a single one."""
        images = self._open()
        tracker = Tracker(self._describe, self._revisit)
        for position, image in enumerate(images):
            self._image = image
            snapshot = image.snapshot()
            if snapshot.torn:
                self._notes.append(f"{image.name}: the task list is damaged; what can be read of it is shown")
            tracker.receive_tasks(snapshot)
            while (event := tracker.next_event()) is not None:
                if self._wanted(event):
                    yield event
            if position == 0:
                yield from self._dead(image, snapshot, freed=len(images) == 1)
        if tracker.counts.missed:
            self._notes.append(
                f"{tracker.counts.missed} tasks (threads included) came and went between the images"
            )
        if not tracker.counts.starts:
            self._notes.append("the task list of this kernel is empty: the guest has not finished booting")

    def notes(self) -> Sequence[str]:
        """Those of the images."""
        return self._notes

    def _open(self) -> list[Image]:
        locations = (self._options.location, *self._options.following)
        images = [Image(location, self._options.progress) for location in locations]
        for image in images:
            self._notes += [
                f"{image.name}: {note}" if len(images) > 1 else note for note in image.found.notes
            ]
            if image.boot() != images[0].boot():
                raise TargetError(
                    f"{image.name} is of another boot than {images[0].name}; give images of one boot, "
                    "or look at each alone"
                )
        if any(before.time_ns > after.time_ns for before, after in pairwise(images)):
            images.sort(key=lambda image: image.time_ns)
            order = ", ".join(image.name for image in images)
            self._notes.append(f"the images were not in the order in which they were taken; read as {order}")
        return images

    def _describe(self, task: Task) -> Process:
        image = self._image
        if image is None:
            raise MemoryFault(task.address, "no image is open", "virtual")
        return image.processes.describe(task)

    def _revisit(self, task: Task) -> Task | None:
        return self._image.kernel.revisit(task) if self._image is not None else None

    def _dead(self, image: Image, snapshot: Snapshot, *, freed: bool) -> Iterator[Event]:
        """Ends that happened before the image: zombies, then what freed memory still holds."""
        zombie = Occasion(time_ns=snapshot.time_ns, trigger="zombie")
        for task in snapshot.tasks:
            if task.dead and (self._options.kernel_threads or not task.kernel):
                yield _end(image.processes.describe(task), task.exit_code, zombie)
        if not freed:
            return
        rest = Occasion(time_ns=snapshot.time_ns, trigger="freed memory")
        for corpse in dead.find(
            image.kernel, snapshot.tasks, boot_ns=image.system.boot_ns, time_ns=image.time_ns
        ):
            if self._options.kernel_threads or not corpse.process.kernel:
                yield _end(corpse.process, corpse.exit_code, rest)

    def _wanted(self, event: Event) -> bool:
        process = event.old if isinstance(event, ProcessExec) else event.process
        return self._options.kernel_threads or not process.kernel


def _end(process: Process, exit_code: int, occasion: Occasion) -> ProcessEnd:
    status = ExitStatus.from_kernel(exit_code)
    reason = EndReason.SIGNAL if status.signal is not None else EndReason.EXIT
    return ProcessEnd(
        process=replace(process, exited=status), reason=reason, status=status, occasion=occasion
    )


def select(source: Source, options: Options) -> Iterator[Event | str]:
    """The events that the user wants, and each note as soon as there is one.  Raises `PseError`."""
    said = shown_count = 0
    events = source.events()
    # Closed at once, not when it is collected: a guest has other observers to serve.
    with contextlib.closing(events) if isinstance(events, Generator) else contextlib.nullcontext():
        for event in events:
            yield from source.notes()[said:]
            said = len(source.notes())
            if options.pids and process_of(event).pid not in options.pids:
                continue
            if options.new and reason(event) == "running":
                continue
            yield event
            shown_count += 1
            if shown_count == options.count:
                break
    yield from source.notes()[said:]


KINDS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda location: urllib.parse.urlparse(location).scheme in SCHEMES,
        "live.volatility.output.sources:LiveSource",
    ),
    (
        lambda location: bool(
            importlib.import_module("live.volatility.output.recording_source").meant(location)
        ),
        "live.volatility.output.recording_source:RecordingSource",
    ),
    (lambda location: True, "live.volatility.output.sources:ImageSource"),
)
"""Whether a location means a kind of input, and ``module:class`` of its source; the first that says so."""


def open_source(options: Options) -> Source:
    """The source for what the user named.  Raises `TargetError`."""
    if not options.location:
        raise TargetError(
            "there is nothing to look at: give -f an image, or qemu:///PATH of a guest's monitor socket"
        )
    for meant, where in KINDS:
        if meant(options.location):
            module, _, name = where.partition(":")
            source: Source = getattr(importlib.import_module(module), name)(options)
            return source
    raise TargetError(
        f"{shown(options.location)} is nothing that can be looked at"
    )  # unreachable: the last fits all
