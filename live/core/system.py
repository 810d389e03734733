"""What an operating system is to us: task lists, processes, what its traps mean.  A contract; no I/O here.

An implementation is one folder and one line in the table of `live.watch.systems`.  The rest of the project
knows tasks, moments and processes only, and none of the system's structures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from live.core.events import Identity, Process
from live.core.hypervisor import UnplacedRam
from live.core.machine import Architecture, Registers
from live.core.memory import Asid, GuestVirtual, MemoryReader
from live.core.snapshot import Counters, Happening, Snapshot, Task
from live.core.traps import Abi, Access, CallFlags, CodeHit, Fence, Syscall, TrapRequest, Word

Progress = Callable[[float, str], None]
"""Called with a percentage (0..100) and what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One boot of one guest, as far as it is known; while a guest boots, more becomes known.

    ``hostname``: its own name; ``release``: of the kernel.  ``boot_id``: never the same for two boots;
    ``boot_id_known``: it is the one that the guest itself shows, not ``key``.  ``boot_ns``: UTC ns at which
    the boot clock was 0, by the guest's own wall clock; None if that is not known.  ``key``: never the same
    for two boots either, and never another one in the same boot, whenever it is read and by whomever; "" in
    recordings of versions that had none.
    """

    hostname: str | None
    release: str | None
    boot_id: str
    boot_id_known: bool
    boot_ns: int | None
    key: str = ""


class Reached(NamedTuple):
    """What a trap means.

    ``function``: of the guest's kernel, for the output.  ``happening`` is None for what is no step of a
    thread group: a new thread, a thread's own exit.  ``created`` is (tid, start_boottime) of a new task,
    thread or process; None otherwise.
    """

    function: str
    happening: Happening | None
    created: tuple[int, int] | None = None


class LifecyclePoints(Protocol):
    """Where the system itself finishes each step in the life of a process: what to trap, what it means."""

    @property
    def ways(self) -> frozenset[type]:
        """The classes of traps by which every moment can be had, each by itself."""

    @property
    def addresses(self) -> frozenset[GuestVirtual]:
        """Guest-virtual addresses of the functions."""

    @property
    def fences(self) -> frozenset[Fence]:
        """`addresses` at which the vCPU need not stand."""

    def request(self, prefers: type = CodeHit) -> TrapRequest:
        """What to arm, held: every point, by the class of trap that the source prefers if possible."""

    def reached(self, trap: CodeHit | Access) -> Reached | None:
        """What a trap of `request` means; None for another one, or a task that is unreadable or gone."""


class AsidRules(Protocol):
    """What a system knows of its asids and system calls (`live.core.asids`): no code address is needed.

    Nothing here raises.
    """

    @property
    def kernel(self) -> frozenset[Asid]:
        """Asids of the kernel itself, in which no process runs."""

    @property
    def words(self) -> Sequence[Word]:
        """Words that change whenever a task comes or goes."""

    @property
    def syscalls(self) -> frozenset[int]:
        """Numbers, by `Abi.NATIVE`, of the calls for which `shares` may be true."""

    @property
    def compat_syscalls(self) -> frozenset[int]:
        """The same by `Abi.COMPAT`."""

    @property
    def call_flags(self) -> frozenset[CallFlags]:
        """Flags without which `shares` is false."""

    @property
    def entries(self) -> frozenset[tuple[GuestVirtual, Abi]]:
        """Where the kernel begins a system call (`TrapRequest.entries`); none where that is not known."""

    @property
    def waits(self) -> frozenset[int]:
        """Numbers, by `Abi.NATIVE`, of calls that only wait for a child."""

    def marks(self, task: Task) -> Sequence[Word]:
        """Words of which one changes on the task's way to its death; none where that cannot be told."""

    def unfinished(self, task: Task) -> bool:
        """Whether a new task is on the list, and not complete yet."""

    def shares(self, call: Syscall) -> bool:
        """Whether a call may make a process in the asid of its caller."""

    def caller(self, call: Syscall) -> int:
        """Guest-virtual address of the task that makes a call, as `Task.parent` has it; 0: unknown."""

    def task(self, address: int) -> Task | None:
        """The leader of the thread group of the task at a guest-virtual address; None if it is unreadable."""

    def newest(self, known: Callable[[int], Identity | None]) -> Sequence[Task] | None:
        """The tasks behind the last one on the list that is known, oldest first; None: read the whole list.

        ``known(address)``: the identity of the task that is known at a guest-virtual address.
        """


class OperatingSystem(Protocol):
    """A running system in guest memory.

    Nothing here raises on account of what that memory holds, but where that is said.  It reads the memory
    that it was found in, and nothing else: the same memory gives the same answers.
    """

    @property
    def name(self) -> str:
        """That of its `Finder`: ``"linux"``."""

    @property
    def title(self) -> str:
        """Its name and release, for the output: ``"Linux 6.1.0"``."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how it was found, a sentence each."""

    @property
    def system(self) -> System:
        """Which boot of which host it is, as known at the last `uptime`."""

    @property
    def memory(self) -> MemoryReader:
        """Guest-physical memory, as it was found in."""

    def counters(self) -> Counters:
        """The kernel's own counters; O(1).  Raises `MemoryFault`."""

    def snapshot(self, time_ns: int, trigger: str) -> Snapshot:
        """All thread groups at one moment.  ``time_ns``: UTC ns by the observer's clock, passed on.

        Raises `MemoryFault` if not even the head of the list can be read.
        """

    def revisit(self, task: Task) -> Task | None:
        """A task that has left the list, with its exit code, if its memory still holds it."""

    def same_boot(self) -> bool:
        """Whether memory still holds the boot that `system` says.  Raises `MemoryFault`."""

    def uptime(self) -> int | None:
        """The guest's boot clock now, ns, as `Identity.start` has it; None if it cannot be read.

        Not ahead of the truth, and no more than a timer tick behind while the guest runs.  Brings `system`
        up to date.
        """

    def keep(self, *, max_args: int) -> None:
        """Keep so many bytes of a command line; of a longer one, `Process.args_truncated` is set."""

    def describe(self, task: Task, *, standing: bool = False) -> Process:
        """Everything that is known of a task, now.

        ``standing``: a vCPU is held, or fenced, so what the task holds does not change while it is read.
        """

    def points(self) -> LifecyclePoints:
        """The points of this kernel.  Raises `SymbolsMissing` if it lacks one."""

    def asids(self) -> AsidRules:
        """What is known of asids.  Raises `MemoryFault` or `SymbolsMissing` if that is not enough."""

    def runs(self, registers: Registers) -> bool:
        """Whether a vCPU with these registers executes this system, and not another that RAM holds, too."""

    def ticking(self) -> bool:
        """Whether the kernel's clock goes on, as far as a fraction of a second tells; it takes that long."""

    def over(self, memory: MemoryReader) -> OperatingSystem:
        """The same system, seen through another reader of the same memory.  Raises `MemoryFault`."""

    def recorded(self) -> Mapping[str, Any]:
        """What `Finder.recall` needs to know of the kernel, as JSON values."""

    def symbols(self) -> bytes:
        """The symbol table that `Finder.recall` needs.  Raises `SymbolsMissing`."""


class Finder(Protocol):
    """Finds one kind of operating system in guest memory."""

    @property
    def name(self) -> str:
        """``"linux"``."""

    def place(self, ram: UnplacedRam, machine: Architecture) -> bool:
        """Find out where RAM lies in guest-physical space, and place it; False if that cannot be told."""

    def find(
        self, memory: MemoryReader, machine: Architecture, progress: Progress | None = None
    ) -> OperatingSystem:
        """The living system.  Raises `NoKernelFound` or `SymbolsMissing`, each with what to do next."""

    def recall(
        self, memory: MemoryReader, machine: Architecture, kernel: object, symbols: bytes, system: System
    ) -> OperatingSystem:
        """A system that was recorded, over the recorded memory.

        ``kernel`` and ``symbols``: as `OperatingSystem.recorded` and `OperatingSystem.symbols` gave them, or
        what a stranger's file says instead.  Raises `ValueError`, `SymbolsMissing`, `MemoryFault`.
        """
