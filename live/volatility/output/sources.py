"""The event sources of `linux.pse`: one class per kind of input, chosen by what ``-f`` names.

Theory of operation
-------------------
A source yields `live.core.events.Event` in order, and notes for the user as sentences.  A single image gives
the running processes, and ended ones that are still visible (zombies, and `task_struct` objects in freed
memory).  A series of images of one boot goes through the same tracker as a live guest: each image is one
snapshot.  To add a kind of input, write a class and add a line to `KINDS`.
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
from live.core.events import Event, ExitStatus, Occasion, Process, ProcessEnd, is_kernels
from live.core.snapshot import Snapshot, Task
from live.core.tracker import Tracker
from live.linux import dead
from live.linux.kernel import LinuxKernel
from live.linux.system import LinuxSystem
from live.output.columns import process_of, reason
from live.volatility.input.finder import Progress
from live.volatility.input.guest_file import SCHEMES, target_of
from live.volatility.input.image import Image, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `linux.pse`.

    ``location``: URL of ``-f``; ``following``: URLs of ``--next``.  ``duration``: seconds of a live run;
    ``mode``: how it is watched, as for `live.watch.monitor.Monitor`.
    ``count``: most events shown.  ``pids``: if not empty, only events of these processes.  ``new``: leave
    out what was running at the start.
    """

    location: str
    following: tuple[str, ...] = ()
    duration: float | None = None
    mode: str = "auto"
    count: int | None = None
    pids: frozenset[int] = frozenset()
    new: bool = False
    kernel_threads: bool = False
    progress: Progress | None = None


class Source(Protocol):
    """One input; `notes` grows while `events` runs."""

    @property
    def kernel(self) -> LinuxKernel | None:
        """The kernel of the last event, if its memory can be read at this time, else None."""

    def events(self) -> Iterator[Event]:
        """The events, oldest first.  Raises `PseError`."""

    def notes(self) -> Sequence[str]:
        """What the user should know, a sentence each."""


class LiveSource:
    """A running guest; a `Source`."""

    def __init__(self, options: Options) -> None:
        """Nothing is attached before `events`.  Raises `TargetError` if ``--next`` was given."""
        if options.following:
            raise TargetError("--next takes images; a live guest is watched as long as --duration says")
        self._scheme = urllib.parse.urlparse(options.location).scheme
        self._target = target_of(options.location)
        self._options = options
        self._notes: list[str] = []
        self.kernel: LinuxKernel | None = None

    def events(self) -> Iterator[Event]:
        """The events as they happen, until ``duration`` is over or the guest ends."""
        from live.watch.monitor import Monitor  # noqa: PLC0415 -- an image needs none of it
        from live.watch.session import Session  # noqa: PLC0415

        options = self._options
        with Session(f"{self._scheme}:{self._target or ''}", progress=options.progress) as session:
            self._notes += session.notes
            if isinstance(session.os, LinuxSystem):
                self.kernel = session.os.kernel
            # After a renderer has failed (`| head`), this generator is closed at interpreter exit, which is
            # too late to close the monitor's event loop.
            atexit.register(session.close)
            monitor = Monitor(session, mode=options.mode, kernel_threads=options.kernel_threads)
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
        """Notes of the session and the monitor."""
        return self._notes


class ImageSource:
    """One image, or a series of images of one boot; a `Source`."""

    def __init__(self, options: Options) -> None:
        """Nothing is opened before `events`."""
        self._options = options
        self._notes: list[str] = []
        self._image: Image | None = None

    @property
    def kernel(self) -> LinuxKernel | None:
        """The kernel in the image of the last event."""
        return self._image.kernel if self._image is not None else None

    def events(self) -> Iterator[Event]:
        """The processes of the first image, then the changes in each later one.

        Zombies of the first image are shown as ended, and freed tasks if it is the only one.
        """
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
        """Notes on the images."""
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

    def _describe(self, task: Task, *, standing: bool = False) -> Process:
        image = self._image
        if image is None:
            raise MemoryFault(task.address, "no image is open", "virtual")
        return image.processes.describe(task)

    def _revisit(self, task: Task) -> Task | None:
        return self._image.os.revisit(task) if self._image is not None else None

    def _dead(self, image: Image, snapshot: Snapshot, *, freed: bool) -> Iterator[Event]:
        """Ends that happened before the image: zombies, then freed tasks if ``freed``."""
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
        return self._options.kernel_threads or not is_kernels(event)


def _end(process: Process, exit_code: int, occasion: Occasion) -> ProcessEnd:
    status = ExitStatus.from_kernel(exit_code)
    return ProcessEnd(
        process=replace(process, exited=status), reason=status.reason, status=status, occasion=occasion
    )


def select(source: Source, options: Options) -> Iterator[Event | str]:
    """The events that the options select, and each note (a str) as it becomes known.  Raises `PseError`."""
    said = shown_count = 0
    events = source.events()
    # Closed at once, not when it is collected: the monitor is free for other clients then.
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
"""(whether a location is of this kind, ``module:class`` of the source); the first match counts."""


def open_source(options: Options) -> Source:
    """The source for ``options.location``.  Raises `TargetError`."""
    if not options.location:
        raise TargetError(
            f"there is nothing to look at: give -f an image, a recording, or SCHEME:///TARGET of a running "
            f"guest ({', '.join(SCHEMES)})"
        )
    for meant, where in KINDS:
        if meant(options.location):
            module, _, name = where.partition(":")
            source: Source = getattr(importlib.import_module(module), name)(options)
            return source
    raise TargetError(
        f"{shown(options.location)} is nothing that can be looked at"
    )  # unreachable: the last fits all
