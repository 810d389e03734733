"""The commands `pse record`, `pse replay` and `pse export`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from live.core.errors import TargetError
from live.core.text import printable
from live.output import render
from live.output.columns import reason
from live.recording.export import create
from live.recording.export import export as write_memory
from live.recording.file import Recording
from live.recording.filters import EventFilter, find_event, wanted
from live.recording.opening import open_recording
from live.recording.past_memory import StateMemory
from live.recording.record import Recorder
from live.recording.replay import Replay
from live.recording.stepper import Frames
from live.watch.session import Session


def _say(text: str) -> None:
    print(f"pse: {printable(text)}", file=sys.stderr)


def record(arguments: argparse.Namespace) -> int:
    """See `pse record --help`; returns the exit status."""

    frames = Frames(
        start=arguments.keyframe_start,
        every=arguments.keyframe_every,
        on=tuple(EventFilter(text) for text in arguments.keyframe_on),
    )
    with (
        Session(arguments.target) as session,
        Recorder(
            session,
            arguments.output,
            mode=arguments.mode,
            interval=arguments.interval / 1000,
            frames=frames,
            force=arguments.force,
            level=arguments.level,
        ) as recorder,
    ):
        choice = recorder.choice
        _say(f"{session.name}: Linux {session.found.release}, {choice.mode} mode, into {arguments.output}")
        _say(choice.guarantee)
        for note in session.found.notes:
            _say(note)
        renderer = (
            render.JsonRenderer(sys.stdout, session.system, host=session.name, mode=choice.mode)
            if arguments.json
            else None
        )
        began = time.monotonic()
        try:
            for event in recorder.events(
                duration=arguments.duration, count=arguments.count, kernel_threads=arguments.kernel_threads
            ):
                if renderer is not None:
                    renderer.show(event)
        finally:
            _say(_summary(recorder, time.monotonic() - began, arguments.output))
    return 0


def _summary(recorder: Recorder, elapsed: float, path: Path) -> str:
    counts, frames = recorder.counts, recorder.steps.frames
    try:
        size = f"{path.stat().st_size / 1e6:.1f} MB"
    except OSError:
        size = "gone"
    return (
        f"{elapsed:.1f} s: {counts.starts} starts, {counts.execs} execs, {counts.ends} ends; {counts.missed} "
        f"tasks missed; {recorder.writer.last_step} steps, "
        f"{frames} keyframe{'s' * (frames != 1)}, {size} in {path}"
    )


def replay(arguments: argparse.Namespace) -> int:
    """See `pse replay --help`; returns the exit status."""

    with open_recording(arguments.file) as recording:
        head = recording.header
        _say(f"{head.target}: Linux {head.release}, recorded in {head.mode} mode by {head.writer}")
        if recording.end() is None:
            _say("its recorder was killed, or has not ended yet: this is what it had written")
        renderer: render.Renderer
        if arguments.numbers and not arguments.json:
            renderer = _NumberedRenderer()
        else:
            renderer = render.choose(head.system, json=arguments.json, host=head.target, mode=head.mode)
        replay = None if arguments.recorded else Replay(recording)
        events = (
            replay.events() if replay is not None else ((one.number, one.event) for one in recording.events())
        )
        shown = 0
        try:
            for number, event in events:
                if not (arguments.kernel_threads or wanted(event)):
                    continue
                if arguments.new and reason(event) == "running":
                    continue
                if isinstance(renderer, _NumberedRenderer):
                    renderer.number = number
                renderer.show(event)
                shown += 1
                if shown == arguments.count:
                    break
        finally:
            renderer.close()
        return _verdict(recording, replay)


def _verdict(recording: Recording, replay: Any) -> int:
    if replay is None or not replay.differences:
        return 0
    first = replay.first
    _say(
        f"{replay.differences} events came out otherwise than they were recorded, first event {first.number} "
        f"(step {first.step}): the file was changed, or this version reads memory in another way; --recorded "
        f"shows the events as they were seen by {recording.header.writer}"
    )
    return 1


class _NumberedRenderer:
    """Plain lines, each with its event's number."""

    def __init__(self) -> None:
        self.number = 0
        print(f"{'EVENT':>7}  {render.header()}")

    def show(self, event: Any) -> None:
        print(f"{self.number:>7}  {render.row(event)}", flush=True)

    def pause(self, summary: Callable[[], str]) -> None:
        """There is nothing that waits."""

    def close(self) -> None:
        """Everything is printed."""


def export(arguments: argparse.Namespace) -> int:
    """See `pse export --help`; returns the exit status."""

    with open_recording(arguments.file) as recording:
        found = find_event(recording, arguments.at)
        memory = StateMemory(recording, recording.step(found.step), last_known=arguments.partial)
        total = sum(segment.length for segment in memory.segments) // 4096
        if not memory.complete and not arguments.partial:
            raise TargetError(
                f"at event {found.number} only {memory.pages} of {total} pages of memory are recorded; "
                "choose one with a keyframe (record with --keyframe-on), or take what there is with --partial"
            )
        size = write_memory(memory, arguments.output, force=arguments.force)
        _say(f"event {found.number}: {size >> 20} MiB in {arguments.output}")
        if memory.complete and not memory.still:
            _say("the guest ran on while this keyframe was taken: its pages are not all of one moment")
        if not memory.complete:
            _say(f"{memory.pages} of {total} pages are exact; of others, what was last seen, or zeros")
        if arguments.symbols is not None:
            with create(arguments.symbols, arguments.force) as out:
                out.write(recording.symbols())
            _say(f"the symbol table is in {arguments.symbols}")
    return 0
