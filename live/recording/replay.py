"""Replays a recording: the same steps over the same memory give the same events."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from live.arch import architecture
from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Event
from live.core.memory import MemoryReader
from live.core.system import OperatingSystem, System
from live.recording import codec
from live.recording.file import Recording, Step
from live.recording.past_memory import ReplayMemory
from live.watch.asid_stepper import stepper_of
from live.watch.stepper import Steps
from live.watch.systems import finder


def system_of(recording: Recording, memory: MemoryReader) -> OperatingSystem:
    """The operating system in a recording, over ``memory``, which is a reader of that recording.

    Raises `SymbolsMissing`, `MemoryFault`, and `TargetError` if header or symbol table is damaged.
    """
    head = recording.header
    try:
        return finder(head.os).recall(
            memory, architecture(head.machine), head.kernel, recording.symbols(), head.system
        )
    except ValueError as error:
        raise recording.damaged(str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        # The symbol table may come from a stranger.
        raise recording.damaged(f"its symbol table makes no sense ({error!r})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first difference in a step; ``number``: of the event; None where one side has no such event."""

    step: int
    number: int
    recorded: Event | None
    replayed: Event | None


class Replay:
    """Drives a `Stepper` through a recording and compares its events with the recorded ones."""

    def __init__(self, recording: Recording) -> None:
        """Nothing is replayed before `events`."""
        self.recording = recording
        self.system: System = recording.header.system
        """Which boot of which host it is, as known at the event that `events` has given last."""
        self._memory = ReplayMemory(recording)
        self.differences = 0
        """Number of events that differ from the recorded ones."""
        self.first: Difference | None = None

    def events(self) -> Iterator[tuple[int, Event]]:
        """(number, event) of the replayed events, in order.  Raises `TargetError`, `SymbolsMissing`."""
        steps = self.recording.steps()
        setup = next(steps, None)
        if setup is None or setup.kind != "setup":
            raise self.recording.damaged("it does not begin with a kernel being found")
        self._memory.enter(setup)
        try:
            system = system_of(self.recording, self._memory)
        except MemoryFault as fault:
            raise self.recording.damaged(f"its kernel's data is missing ({fault})") from fault
        stepper = self._stepper(system)
        for step in steps:
            self._memory.enter(step)
            events = self._take(stepper, step)
            self.system = system.system
            self._compare(step, events)
            yield from enumerate(events, step.events[0])

    def _stepper(self, system: OperatingSystem) -> Steps:
        head = self.recording.header
        try:
            return stepper_of(head.mode, system, architecture(head.machine))
        except (MemoryFault, SymbolsMissing) as error:
            raise self.recording.damaged(f"its kernel's data is missing ({error})") from error

    def _take(self, stepper: Steps, step: Step) -> list[Event]:
        try:
            if step.kind == "look":
                return stepper.snapshot(step.time_ns, step.cause)
            if step.trap is not None:
                return stepper.trap(step.trap, step.time_ns, step.late_ns)
        except MemoryFault as fault:
            if step.error is None:
                raise self.recording.damaged(f"step {step.id} cannot be repeated ({fault})") from fault
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            # A damaged recording: a trap without the needed registers, or a symbol table with wrong types.
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
    """Whether the replayed event has all recorded values; a newer version may read more fields."""
    return _covers(codec.encode_event(new), codec.encode_event(old))


def _covers(new: Any, old: Any) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _covers(new[name], value) for name, value in old.items())
    return bool(new == old)
