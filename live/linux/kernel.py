"""Linux: from memory to tasks.

Theory of operation
-------------------
`init_task.tasks` links the leaders of all thread groups.  One unpack a `task_struct` takes every
member that is wanted, and one each for the `signal_struct`, `mm_struct` and `cred` behind it.  The
guest runs meanwhile; what makes the result exact is the kernel's own bookkeeping: `total_forks`
and `nr_threads` change under the same lock as the list, so a walk with equal counters before and
after it saw a list that held still.  Otherwise it is repeated, and after the last try returned as
torn.

Rules
-----
* Every walk is bounded and never visits an address twice; a list that does not lead back to
  `init_task` is torn, whatever the reason.
* Values are taken as they are; nothing is asserted on guest data.

Known warts
-----------
* The leader of a thread group that is inside execve from another thread is replaced in the list
  (`de_thread`); both carry the same identity, and `transient` is set on the one that stays.
* A look uses a `Task` again if nothing moved in its task_struct and signal_struct.  A cred or mm
  that was freed and made anew at the same address, between two looks and for the same task, would
  go unnoticed there; `live.linux.details` reads both anew for every event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from live.arch.x86_64 import PageTable
from live.core.errors import MemoryFault
from live.core.events import Identity
from live.core.memory import MemoryReader
from live.core.snapshot import Counters, Snapshot, Task
from live.linux.kernel_memory import START_KERNEL_MAP, KernelMemory
from live.linux.layout import SymbolTable, field

_Seen = tuple[tuple[Any, ...], tuple[Any, ...], Task]
"""Of one task: what was unpacked from its task_struct and its signal_struct, and the result."""

# include/linux/sched.h; values unchanged since 2.6.
PF_EXITING = 0x0000_0004
PF_WQ_WORKER = 0x0000_0020
PF_FORKNOEXEC = 0x0000_0040
PF_DUMPCORE = 0x0000_0200
PF_SIGNALED = 0x0000_0400
PF_KTHREAD = 0x0020_0000

SIGNAL_GROUP_EXIT = 0x4  # include/linux/sched/signal.h
MAX_TASKS = 1 << 18
"""A walk visits no more tasks than this; the largest guests run a few ten thousand."""
_TRIES = 4
_NO_DIRECT_MAP = 1 << 64
# Until page_offset_base has been read, which lies in the image, nothing is in the direct map.

# Members of task_struct, in the order in which `_task` takes them apart.
_NEXT, _FLAGS, _MM_AT, _SIGNAL_AT = 0, 3, 9, 11
_TASK = (
    field("tasks.next"),
    field("pid"),
    field("tgid"),
    field("flags"),
    field("exit_state"),
    field("exit_code"),
    field("real_parent"),
    # start_boottime since 5.5 (kernel commit cf25e24db61c), real_start_time before.
    field("start_boottime", "real_start_time"),
    field("self_exec_id"),
    field("mm"),
    field("real_cred"),
    field("signal"),
    field("group_leader"),
    field("comm"),
    field("in_execve", default=0),
)
# signal->live is an atomic_t.
_NR_THREADS = 3
_SIGNAL = (
    field("live.counter", "live"),
    field("flags"),
    field("group_exit_code"),
    field("nr_threads"),
    field("thread_head.next"),
)
_MM = (field("pgd"),)
_CRED = (field("uid.val", "uid"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlace:
    """Where a kernel lies in the guest: what a symbol table cannot say.

    ``kaslr_shift``: bytes added to link-time addresses; ``phys_base``: gpa of
    `__START_KERNEL_map`; ``dtb``: gpa of the kernel's top-level page table; ``la57``: 5 levels.
    """

    kaslr_shift: int
    phys_base: int
    dtb: int
    la57: bool


class LinuxKernel:
    """A running Linux kernel: memory, symbols, and the readers compiled for its layout."""

    def __init__(self, memory: MemoryReader, symbols: SymbolTable, place: KernelPlace) -> None:
        """Compile the readers.

        Raises `SymbolsMissing` if the table lacks what every kernel has, `MemoryFault` if the
        kernel's globals cannot be read (then ``place`` is wrong).
        """
        self.symbols = symbols
        self.place = place
        self._shift = place.kaslr_shift
        table = PageTable(memory, place.dtb, 5 if place.la57 else 4)
        end = symbols.symbol("_end", "__bss_stop")
        # 1 GiB is the most that the kernel maps for its image (KERNEL_IMAGE_SIZE).
        image = (START_KERNEL_MAP, (end or START_KERNEL_MAP + (1 << 30) - self._shift) + self._shift)
        self.memory = KernelMemory(
            memory, phys_base=place.phys_base, image=image, direct=_NO_DIRECT_MAP, table=table
        )
        self.memory = KernelMemory(
            memory, phys_base=place.phys_base, image=image, direct=self._direct_map(), table=table
        )
        self.levels = 5 if place.la57 else 4
        self._init_task = self.address("init_task")
        unpacker = self.unpacker
        record = symbols.record("task_struct", _TASK)
        self.task = self.memory.unpacker(record)
        self._raw_task = self.memory.raw_unpacker(record)
        self._arrange = record.arranger()
        self._tgid = unpacker("task_struct", (field("tgid"),))
        self._seen: dict[int, _Seen] = {}
        signals = symbols.record("signal_struct", _SIGNAL)
        self.signal = self.memory.unpacker(signals)
        self._raw_signal = self.memory.raw_unpacker(signals)
        self._arrange_signal = signals.arranger()
        self._at = (record.position(_NEXT), record.position(_SIGNAL_AT), signals.position(_NR_THREADS))
        self.mm = unpacker("mm_struct", _MM)
        self.cred = unpacker("cred", _CRED)
        self._tasks_offset = symbols.offset("task_struct", "tasks")
        self._thread = unpacker(
            "task_struct",
            (field("pid"), field("start_boottime", "real_start_time"), field("thread_node.next")),
        )
        self._thread_head = symbols.offset("signal_struct", "thread_head")
        self._thread_node = symbols.offset("task_struct", "thread_node")
        self._counters = self._counter_readers()

    def address(self, *names: str) -> int:
        """Guest-virtual address of a kernel symbol, KASLR shift included; `SymbolsMissing` if unknown."""
        return self.symbols.address(*names) + self._shift

    def symbol(self, *names: str) -> int | None:
        """Like `address`, None if the kernel has no such symbol."""
        found = self.symbols.symbol(*names)
        return None if found is None else found + self._shift

    def unpacker(self, type_name: str, fields: tuple[Any, ...]) -> Callable[[int], tuple[Any, ...]]:
        """A reader of the wanted members of one C type, compiled for this kernel."""
        return self.memory.unpacker(self.symbols.record(type_name, fields))

    def _direct_map(self) -> int:
        symbol = self.symbol("page_offset_base")
        if symbol is not None:  # CONFIG_DYNAMIC_MEMORY_LAYOUT
            return self.memory.u64(symbol)
        # Documentation/arch/x86/x86_64/mm.rst
        return 0xFF11_0000_0000_0000 if self.place.la57 else 0xFFFF_8880_0000_0000

    def _counter_readers(self) -> tuple[Callable[[], int], Callable[[], int], Callable[[], int]]:
        cursor = self.symbols.offset("pid_namespace", "idr.idr_next")
        value = self.memory.value
        return (
            value(self.address("total_forks"), "Q"),
            value(self.address("nr_threads"), "I"),
            value(self.address("init_pid_ns") + cursor, "I"),
        )

    def counters(self) -> Counters:
        """The kernel's own counters; O(1)."""
        forks, threads, cursor = self._counters
        return Counters(forks(), threads(), cursor())

    def forget(self) -> None:
        """Read every task anew at the next look."""
        self._seen = {}

    def snapshot(self, time_ns: int, trigger: str) -> Snapshot:
        """All thread groups, the idle task left out, kernel threads and zombies included.

        ``time_ns`` and ``trigger`` are passed on.  Raises `MemoryFault` only if not even the head
        of the list can be read.
        """
        for attempt in range(_TRIES):
            self.memory.refresh()
            before = self.counters()
            tasks, tids, whole = self._walk()
            self.memory.refresh()
            if whole and self.counters() == before:
                break
            if attempt + 1 == _TRIES:
                return Snapshot(
                    time_ns=time_ns, trigger=trigger, counters=before, tasks=tasks, tids=tids, torn=True
                )
        return Snapshot(time_ns=time_ns, trigger=trigger, counters=before, tasks=tasks, tids=tids)

    def _walk(self) -> tuple[list[Task], frozenset[tuple[int, int]], bool]:
        """(tasks, all tids, whether the walk came back to where it began).

        What a task is made of is compared with the last look, and the `Task` of that look is used
        again if nothing moved: most tasks of a guest do nothing.
        """
        read, signal_of = self._raw_task, self._raw_signal
        offset, head = self._tasks_offset, self._init_task
        at_next, at_signal, at_threads = self._at
        before, now = self._seen, {}
        threads: list[tuple[int, int]] = []
        unreadable: set[int] = set()  # freed under our hands: their members led nowhere
        address, whole = head, True
        for _ in range(MAX_TASKS):
            try:
                raw = read(address)
            except MemoryFault:
                whole = False
                break
            if address != head:
                try:
                    signal = signal_of(raw[at_signal])
                    seen = before.get(address)
                    if seen is None or seen[0] != raw or seen[1] != signal:
                        values = self._arrange(raw), self._arrange_signal(signal)
                        seen = (raw, signal, self._task(address, *values))
                    if signal[at_threads] > 1:
                        threads.extend(self._threads(raw[at_signal], MAX_TASKS - len(threads)))
                    now[address] = seen
                except MemoryFault:
                    unreadable.add(address)
            address = raw[at_next] - offset
            if address == head:
                break
            if address in now or address in unreadable:
                whole = False
                break
        else:
            whole = False
        self._seen = now
        tasks = [seen[2] for seen in now.values()]
        tids = frozenset(chain(threads, [task.identity for task in tasks]))
        return tasks, tids, whole and not unreadable and len(threads) < MAX_TASKS

    def read_task(self, address: int, raw: tuple[Any, ...] | None = None) -> Task:
        """The thread group of the task at ``address``, seen through its leader.

        ``raw``: what `task` has just read there.  Raises `MemoryFault`.
        """
        raw = raw or self.task(address)
        leader = raw[12]
        if leader != address:
            address, raw = leader, self.task(leader)
        signal = self.signal(raw[_SIGNAL_AT])
        try:
            return self._task(address, raw, signal)
        except MemoryFault:
            if not raw[_FLAGS] & PF_EXITING:
                raise
            # exit_mm() and what it frees were quicker than we; nothing else of the task is gone.
            return self._task(address, (*raw[:_MM_AT], 0, *raw[_MM_AT + 1 :]), signal)

    def revisit(self, task: Task) -> Task | None:
        """The same task after it left the list, if its memory still holds it and it was exiting.

        The kernel does not clear a freed `task_struct`; until the memory is used again it still
        says how the task ended.
        """
        try:
            raw = self.task(task.address)
        except MemoryFault:
            return None
        if Identity(raw[2], raw[7]) != task.identity or not raw[3] & PF_EXITING:
            return None
        return task._replace(flags=raw[3], exit_code=raw[5], dead=True)

    def _task(self, address: int, raw: tuple[Any, ...], signal: tuple[Any, ...]) -> Task:
        (_, _, tgid, flags, exit_state, exit_code, parent, start) = raw[:8]
        (generation, mm, cred, _, _, comm, execve) = raw[8:]
        live, signal_flags, group_code, _, _ = signal
        end = comm.find(b"\0")
        # By position: by name it takes as long as everything else together.
        return Task(
            Identity(tgid, start),
            address,
            self._tgid(parent)[0] if parent else 0,
            parent,
            comm[:end] if end >= 0 else comm,
            flags,
            generation,
            mm,
            # asid: not masked, as a CR3 would be. Without PTI a pgd is one page, at any page, since 6.15
            # (arch/x86/include/asm/pgalloc.h: pgd_allocation_order), and bit 12 belongs to its address.
            self.memory.gpa(self.mm(mm)[0]) if mm else 0,
            self.cred(cred)[0],
            live,
            exit_state,
            group_code if signal_flags & SIGNAL_GROUP_EXIT else exit_code,
            # kernel: a usermode helper is a kernel thread without PF_KTHREAD until it execs (since 5.19,
            # kernel commit 343f4c49f243); an exiting process has lost its mm, but is none.
            flags & PF_KTHREAD != 0 or (not mm and not flags & PF_EXITING),
            flags & PF_FORKNOEXEC != 0,
            # dead: exit_state is set after exit_code and the group's code are final; live falls before.
            live <= 0 and exit_state != 0,
            execve != 0,
        )

    def _threads(self, signal: int, most: int) -> Iterator[tuple[int, int]]:
        """(tid, start_boottime) of ``most`` threads at most of a `signal_struct`'s group, in list order."""
        _, _, _, count, node = self.signal(signal)
        head = signal + self._thread_head
        seen: set[int] = set()
        for _ in range(min(count, most)):
            if node == head or node in seen:
                return
            seen.add(node)
            pid, start, node = self._thread(node - self._thread_node)
            yield pid, start
