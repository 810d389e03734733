"""A short time in the life of a toy: what happens, and the events that have to come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from live.core.events import Event, ProcessEnd, ProcessExec, ProcessStart
from live.core.machine import Architecture
from live.core.traps import CodeHit
from tests.hypervisors.fake import FakeSource, code_hit
from tests.toy.world import EXECUTED, EXITED, FORKED, World

Step = Callable[[], tuple[int, int]]
"""Does what happens; gives the address of the function that has finished it, and the task."""

RUNNING = [("start", 1, "running", "init"), ("start", 2, "running", "sh")]
EVENTS = [
    *RUNNING,
    ("start", 3, "fork", "sh"),
    ("end", 3, "exec", "sh", None),
    ("exec", 3, "sh", "ls"),
    ("start", 3, "exec", "ls"),
    ("end", 3, "exit", "ls", 0),
    ("start", 4, "fork", "sh"),
    ("end", 4, "exit", "sh", 7),
]


def story(world: World) -> Iterator[Step]:
    """The shell runs `ls`, and a subshell that fails; each step is due when the one before was seen."""
    child = 0

    def fork() -> tuple[int, int]:
        nonlocal child
        child = world.fork(2)
        return FORKED, child

    def execute() -> tuple[int, int]:
        world.execute(child, b"ls", b"/bin/ls", b"-l")
        return EXECUTED, child

    def leave(code: int) -> tuple[int, int]:
        world.exit(child, code)
        return EXITED, child

    yield fork
    yield execute
    yield lambda: leave(0)
    world.reap(child)
    yield fork
    yield lambda: leave(7)


def short(event: Event) -> tuple[object, ...]:
    """An event, as `EVENTS` has it."""
    if isinstance(event, ProcessExec):
        return "exec", event.new.pid, event.old.comm, event.new.comm
    process = event.process
    if isinstance(event, ProcessStart):
        return "start", process.pid, event.reason.value, process.comm
    assert isinstance(event, ProcessEnd)
    return "end", process.pid, event.reason.value, process.comm, event.status and event.status.code


class ScriptedOffer:
    """A `live.core.hypervisor.TrapOffer`: a step of the story for each time that a trap is waited for."""

    mode = "scripted"
    supports: frozenset[type] = frozenset({CodeHit})

    def __init__(self, world: World) -> None:
        self._steps = story(world)
        self.sources: list[FakeSource] = []

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        return None if CodeHit in kinds else "The script knows nothing but code addresses."

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> FakeSource:
        source = FakeSource(on_wait=lambda: self._next(source), machine=machine)
        source.mode, source.supports = self.mode, self.supports
        self.sources.append(source)
        return source

    def _next(self, source: FakeSource) -> None:
        step = next(self._steps, None)
        if step is not None:
            address, task = step()
            source.script.append(code_hit(len(source.calls), address, a0=task))
