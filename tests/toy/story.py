"""A short time in the life of a toy: what happens, and the events that have to come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from live.core.events import Event, ProcessEnd, ProcessExec, ProcessStart
from live.core.machine import Architecture
from tests.hypervisors.fake import FakeSource, asid_change, code_hit, syscall
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
    """A `live.core.hypervisor.TrapOffer`: a step of the story when nothing is left to be trapped."""

    mode = "scripted"

    def __init__(self, world: World, supports: frozenset[type] = FakeSource.supports) -> None:
        self.supports = supports
        self._world, self._steps = world, story(world)
        self._runs, self._before = world.page(world.shell), bytes(world.ram)
        self.sources: list[FakeSource] = []

    def reluctance(self, kinds: frozenset[type]) -> str | None:
        return None if kinds & self.supports else "The script knows nothing of what is wanted."

    def open(self, machine: Architecture, kinds: frozenset[type], hold: float) -> FakeSource:
        source = FakeSource(on_wait=lambda: self._next(source), machine=machine)
        source.mode, source.supports = self.mode, self.supports
        self.sources.append(source)
        return source

    def _next(self, source: FakeSource) -> None:
        """A step, the change to the asid that its process has then, and what that one does."""
        step = None if source.script else next(self._steps, None)
        if step is None:
            return
        address, task = step()
        runs = self._world.page(self._world.shell if address == EXITED else task)
        number = len(source.calls)
        source.script += [
            code_hit(number, address, asid=self._runs, a0=task),
            asid_change(number + 1, runs, asid=self._runs, words=self._moved()),
            syscall(number + 2, 1, asid=runs),
        ]
        self._runs = runs

    def _moved(self) -> list[int]:
        """gpas of what has moved since the last asid change."""
        now, before = bytes(self._world.ram), self._before
        self._before = now
        return [at for at in range(0, len(now), 4) if now[at : at + 4] != before[at : at + 4]]
