"""A toy operating system: how it is found, and what its memory says (`tests.toy.world` lays it out)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from live.core.errors import MemoryFault, NoKernelFound
from live.core.events import Identity, Process
from live.core.hypervisor import UnplacedRam
from live.core.machine import Architecture, Registers
from live.core.memory import Asid, GuestPhysical, GuestVirtual, MemoryReader
from live.core.snapshot import Counters, Happening, Moment, Snapshot, Task, comm_of
from live.core.system import Progress, Reached, System
from live.core.traps import Abi, Access, CallFlags, CodeHit, Fence, Syscall, TrapRequest, Word
from tests.toy.world import (
    DEAD,
    EXECUTED,
    EXITED,
    FORKED,
    FORKS_AT,
    FREE,
    HEADER,
    LONGEST,
    MAGIC,
    SLOTS,
    STRIDE,
    TABLE,
    TASK,
    TASKS_AT,
    page_of,
)

_TRIES = 10


class ToySystem:
    """A `live.core.system.OperatingSystem`."""

    name = "toy"
    title = "Toy 1"
    notes: Sequence[str] = ()

    def __init__(self, memory: MemoryReader, machine: Architecture) -> None:
        """Raises `MemoryFault`, or `NoKernelFound` if it is not in this memory."""
        self.memory, self.machine = memory, machine
        magic, boot, _, _, _, _, boot_ns, hostname = self._header()
        if magic != MAGIC:
            raise NoKernelFound("There is no toy at the beginning of this memory; start one.")
        self.system = System(
            hostname=hostname.rstrip(b"\0").decode(),
            release="1",
            boot_id=boot.hex(),
            boot_id_known=True,
            boot_ns=boot_ns,
        )

    def counters(self) -> Counters:
        _, _, forks, tasks, cursor, *_ = self._header()
        return Counters(forks=forks, threads=tasks, cursor=cursor)

    def snapshot(self, time_ns: int, trigger: str) -> Snapshot:
        """The whole table in one read, again if a process came or went meanwhile."""
        for _ in range(_TRIES):
            before = self.counters()
            tasks = [task for at in self.slots() if (task := self.task(at)) is not None]
            torn = self.counters() != before
            if not torn:
                break
        return Snapshot(
            time_ns=time_ns,
            trigger=trigger,
            counters=before,
            tasks=tasks,
            tids=frozenset((task.identity.pid, task.identity.start) for task in tasks),
            torn=torn,
        )

    def task(self, at: int, *, freed: bool = False) -> Task | None:
        """The task at this gpa; None for a free slot, but for one that is asked for all the same."""
        state, pid, ppid, generation, start, code, uid, name = TASK.unpack(self.memory.read(at, TASK.size))
        if state == FREE and not freed:
            return None
        return Task(
            identity=Identity(pid, start),
            address=at,
            ppid=ppid,
            parent=0,
            comm=name.rstrip(b"\0"),
            flags=0,
            generation=generation,
            mm=page_of(at, generation),
            asid=page_of(at, generation),
            uid=uid,
            threads=1,
            exit_state=state,
            exit_code=code,
            kernel=False,
            fresh=generation == 0,
            dead=state in (DEAD, FREE),
            transient=False,
        )

    def revisit(self, task: Task) -> Task | None:
        """A free slot keeps what it held, until it is used again."""
        try:
            now = self.task(task.address, freed=True)
        except MemoryFault:
            return None
        return now if now is not None and now.identity == task.identity and now.dead else None

    def same_boot(self) -> bool:
        return self._header()[1].hex() == self.system.boot_id

    def uptime(self) -> int | None:
        """It has no clock."""
        return None

    def keep(self, *, max_args: int) -> None:
        """Its command lines are short."""

    def describe(self, task: Task, *, standing: bool = False) -> Process:
        space = self.machine.address_space(self.memory, task.mm, 1)
        text = space.read_until_fault(0, LONGEST).partition(b"\0\0")[0]
        arguments = tuple(one.decode() for one in text.split(b"\0")) if text else None
        return Process(
            identity=task.identity,
            generation=task.generation,
            pid=task.identity.pid,
            ppid=task.ppid,
            comm=comm_of(task),
            kernel=False,
            task=GuestVirtual(task.address),
            asid=Asid(task.asid),
            start_ns=(self.system.boot_ns or 0) + task.identity.start,
            exe=arguments[0] if arguments and task.generation else None,
            args=arguments,
            uid=task.uid,
        )

    def points(self) -> ToyPoints:
        return ToyPoints(self)

    def asids(self) -> ToyAsids:
        return ToyAsids(self)

    def runs(self, registers: Registers) -> bool:
        pages = {page_of(at, image) for at in self.slots() for image in (0, 1)}
        return bool(self.machine.roots(registers) & pages)

    def ticking(self) -> bool:
        before = self._header()[5]
        time.sleep(0.01)
        self.memory.refresh()
        return bool(self._header()[5] != before)

    def over(self, memory: MemoryReader) -> ToySystem:
        return ToySystem(memory, self.machine)

    def recorded(self) -> Mapping[str, Any]:
        return {}

    def symbols(self) -> bytes:
        return b"{}"

    def slots(self) -> Iterator[int]:
        """gpas of all tasks, and of free room for some."""
        return iter(range(TABLE, TABLE + SLOTS * STRIDE, STRIDE))

    def _header(self) -> tuple[Any, ...]:
        return HEADER.unpack(self.memory.read(0, HEADER.size))


class ToyAsids:
    """`live.core.system.AsidRules`: an image has an asid of its own, a task a word that says if it lives."""

    kernel: frozenset[Asid] = frozenset()
    words: Sequence[Word] = (
        Word(gpa=GuestPhysical(FORKS_AT)),
        Word(gpa=GuestPhysical(TASKS_AT), size=4),
    )
    syscalls = compat_syscalls = waits = frozenset[int]()
    call_flags: frozenset[CallFlags] = frozenset()
    entries: frozenset[tuple[GuestVirtual, Abi]] = frozenset()

    def __init__(self, system: ToySystem) -> None:
        self._system = system

    def marks(self, task: Task) -> Sequence[Word]:
        return (Word(gpa=GuestPhysical(task.address), size=4),)  # its state

    def unfinished(self, task: Task) -> bool:
        return False

    def shares(self, call: Syscall) -> bool:
        return False

    def caller(self, call: Syscall) -> int:
        """Whose page is in force."""
        pages = {page_of(at, image): at for at in self._system.slots() for image in (0, 1)}
        return pages.get(call.asid, 0)

    def task(self, address: int) -> Task | None:
        try:
            return self._system.task(address)
        except MemoryFault:
            return None

    def newest(self, known: Callable[[int], Identity | None]) -> Sequence[Task] | None:
        """The table has no order."""
        return None


class ToyPoints:
    """`live.core.system.LifecyclePoints`: three functions, and each has the task as its first argument."""

    ways: frozenset[type] = frozenset({CodeHit})
    fences: frozenset[Fence] = frozenset()
    moments: Mapping[GuestVirtual, tuple[str, Moment]] = {
        FORKED: ("forked", Moment.FORK),
        EXECUTED: ("executed", Moment.EXEC),
        EXITED: ("exited", Moment.DEATH),
    }
    addresses = frozenset(moments)

    def __init__(self, system: ToySystem) -> None:
        self._system = system

    def request(self, prefers: type = CodeHit) -> TrapRequest:
        return TrapRequest(code=self.addresses)

    def reached(self, trap: CodeHit | Access) -> Reached | None:
        if trap.pc not in self.moments:
            return None
        function, moment = self.moments[trap.pc]
        try:
            task = self._system.task(self._system.machine.argument(trap.registers, 0))
        except MemoryFault:
            return None
        if task is None:
            return None
        created = (task.identity.pid, task.identity.start) if moment is Moment.FORK else None
        return Reached(function, Happening(moment, task), created)


class ToyFinder:
    """A `live.core.system.Finder`."""

    name = "toy"

    def place(self, ram: UnplacedRam, machine: Architecture) -> bool:
        """Its RAM is always one run from gpa 0."""
        return False

    def find(
        self, memory: MemoryReader, machine: Architecture, progress: Progress | None = None
    ) -> ToySystem:
        try:
            return ToySystem(memory, machine)
        except MemoryFault as fault:
            raise NoKernelFound(f"This memory cannot be read where a toy begins ({fault}).") from fault

    def recall(
        self, memory: MemoryReader, machine: Architecture, kernel: object, symbols: bytes, system: System
    ) -> ToySystem:
        return ToySystem(memory, machine)


TOY = ToyFinder()
