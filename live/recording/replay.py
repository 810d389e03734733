"""The steps of a recording, taken again: the same code over the same memory gives the same events."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live.core.errors import MemoryFault
from live.core.events import Event
from live.core.memory import MemoryReader
from live.linux.details import ProcessReader
from live.linux.kernel import LinuxKernel
from live.linux.layout import SymbolTable
from live.recording import codec
from live.recording.file import Recording, Step
from live.recording.past_memory import ReplayMemory
from live.watch.stepper import Stepper


def kernel_of(recording: Recording, memory: MemoryReader) -> LinuxKernel:
    """The readers for a recording's kernel over ``memory``, which is of that recording.

    Raises `SymbolsMissing`, `MemoryFault`, `TargetError` for a symbol table that is none.
    """
    with tempfile.TemporaryDirectory(prefix="pse-") as directory:
        path = Path(directory) / "recorded.json"
        path.write_bytes(recording.symbols())
        try:
            return LinuxKernel(memory, SymbolTable(path), recording.header.place)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            # The table is a stranger's: nothing says that it makes sense.
            raise recording.damaged(f"its symbol table makes no sense ({error!r})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A step that gave other events than were recorded: ``number`` of the first such event."""

    step: int
    number: int
    recorded: Event | None
    replayed: Event | None


class Replay:
    """Drives a `Stepper` through a recording, and compares what comes out with what was recorded."""

    def __init__(self, recording: Recording) -> None:
        """Set the stage: the first steps are taken by `events`.  Raises `TargetError`, `SymbolsMissing`."""
        self.recording = recording
        self._memory = ReplayMemory(recording)
        self.differences = 0
        """Events that came out otherwise than they were recorded."""
        self.first: Difference | None = None

    def events(self) -> Iterator[tuple[int, Event]]:
        """(number, event), as replayed, in order.  Raises `TargetError` for damage, `SymbolsMissing`."""
        steps = self.recording.steps()
        setup = next(steps, None)
        if setup is None or setup.kind != "setup":
            raise self.recording.damaged("it does not begin with a kernel being found")
        self._memory.enter(setup)
        try:
            kernel = kernel_of(self.recording, self._memory)
        except MemoryFault as fault:
            raise self.recording.damaged(f"its kernel's data is missing ({fault})") from fault
        stepper = Stepper(kernel, ProcessReader(kernel, self.recording.header.system.boot_ns))
        for step in steps:
            self._memory.enter(step)
            events = self._take(stepper, step)
            self._compare(step, events)
            yield from enumerate(events, step.events[0])

    def _take(self, stepper: Stepper, step: Step) -> list[Event]:
        try:
            if step.kind == "look":
                return stepper.snapshot(step.time_ns, step.cause)
            if step.trap is not None:
                return stepper.trap(step.trap, step.time_ns, step.late_ns)
        except MemoryFault as fault:
            if step.error is None:
                raise self.recording.damaged(f"step {step.id} cannot be repeated ({fault})") from fault
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            # A trap without the registers that one has, or members of other types than the kernel's.
            raise self.recording.damaged(f"step {step.id} makes no sense ({error!r})") from error
        return []

    def _compare(self, step: Step, events: list[Event]) -> None:
        first, last = step.events
        recorded = [one.event for one in self.recording.events(first, last)] if first <= last else []
        for index in range(max(len(recorded), len(events))):
            old = recorded[index] if index < len(recorded) else None
            new = events[index] if index < len(events) else None
            if old == new or (old is not None and new is not None and _within(old, new)):
                continue
            self.differences += 1
            if self.first is None:
                self.first = Difference(step=step.id, number=first + index, recorded=old, replayed=new)


def _within(old: Event, new: Event) -> bool:
    """Whether everything that was recorded came out again; a newer version may read more."""
    return _covers(codec.encode_event(new), codec.encode_event(old))


def _covers(new: Any, old: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _covers(new[name], value) for name, value in old.items())
    return bool(new == old)
