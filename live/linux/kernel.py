"""The task list of a running Linux kernel: the walk that takes a snapshot, and the readers of single tasks.

Theory of operation
-------------------
`init_task.tasks` links the leaders of all thread groups.  One unpack per `task_struct` reads all
members that are needed; one more each reads its `signal_struct`, `mm_struct` and `cred`.  The guest
runs during the walk.  `total_forks` and `nr_threads` change under the same lock as the list
(`tasklist_lock`), so a walk with equal counters before and after it saw a list that did not change.
Otherwise the walk is repeated; after the last try the snapshot is returned as torn.

Rules
-----
* Every walk is bounded and visits no address twice.  A list that does not lead back to `init_task`
  is torn, whatever the reason.
* Values are taken as they are; nothing is asserted on guest data.

Known warts
-----------
* When a thread other than the leader calls execve, it replaces the leader in the list
  (`de_thread`).  Both have the same identity; `transient` is set on the one that stays.
* A snapshot reuses a `Task` if its `task_struct` and `signal_struct` have not changed.  A `cred` or
  `mm_struct` that was freed and reallocated at the same address, for the same task and between two
  snapshots, goes unnoticed there.  `live.linux.details` reads both again for every event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from live.core.errors import MemoryFault
from live.core.events import Identity
from live.core.machine import AddressSpace, Architecture
from live.core.memory import MemoryReader
from live.core.snapshot import Counters, Snapshot, Task
from live.linux.kernel_memory import KernelMemory
from live.linux.layout import SymbolTable, field
from live.linux.machines import MACHINES, LinuxMachine
from live.linux.structs import CRED, MM, SIGNAL, TASK, SignalStruct, TaskStruct

_Seen = tuple[tuple[Any, ...], tuple[Any, ...], Task]
"""Raw members of a `task_struct`, raw members of its `signal_struct`, and the `Task` made of them."""

# include/linux/sched.h; values unchanged since 2.6.
PF_EXITING = 0x0000_0004
PF_WQ_WORKER = 0x0000_0020
PF_FORKNOEXEC = 0x0000_0040
PF_DUMPCORE = 0x0000_0200
PF_SIGNALED = 0x0000_0400
PF_KTHREAD = 0x0020_0000

SIGNAL_GROUP_EXIT = 0x4  # include/linux/sched/signal.h
MAX_TASKS = 1 << 18
"""Most tasks that a walk visits; large guests run some ten thousand."""
_TRIES = 4
_NO_DIRECT_MAP = 1 << 64
# Used to read page_offset_base, which lies in the kernel image: no address is in this direct map.

_FIELD = {name: number for number, name in enumerate(TaskStruct._fields)}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlace:
    """Where a kernel was loaded: the facts that its symbol table does not have.

    ``kaslr_shift``: bytes between link-time and run-time virtual addresses.  ``phys_base``: the kernel's
    variable of this name, the gpa of `__START_KERNEL_map` (negative for some KASLR placements).  ``root``:
    gpa of the kernel's top-level page table.  ``levels``: of its page tables, 4 or 5.
    """

    kaslr_shift: int
    phys_base: int
    root: int
    levels: int


class LinuxKernel:
    """A running Linux kernel: memory, symbols, and the readers compiled for its layout."""

    def __init__(
        self, memory: MemoryReader, symbols: SymbolTable, place: KernelPlace, machine: Architecture
    ) -> None:
        """Compile the readers.

        Raises `SymbolsMissing` if the table lacks a needed symbol or member, `MemoryFault` if the
        kernel's globals cannot be read (``place`` is wrong).
        """
        self.symbols = symbols
        self.place = place
        self.machine = machine
        self.facts: LinuxMachine = MACHINES[machine.name]
        self._shift = place.kaslr_shift
        table = machine.address_space(memory, place.root, place.levels)
        end = symbols.symbol("_end", "__bss_stop")
        first = self.facts.image
        image = (first, (end or first + self.facts.largest_image - self._shift) + self._shift)
        self.memory = KernelMemory(
            memory, phys_base=place.phys_base, image=image, direct=_NO_DIRECT_MAP, table=table
        )
        self.memory = KernelMemory(
            memory, phys_base=place.phys_base, image=image, direct=self._direct_map(), table=table
        )
        self._init_task = self.address("init_task")
        unpacker = self.unpacker
        record = symbols.record("task_struct", TASK)
        self._task_members = self.memory.unpacker(record)
        self._raw_task = self.memory.raw_unpacker(record)
        self._arrange = record.arranger()
        self._tgid = unpacker("task_struct", (field("tgid"),))
        self._seen: dict[int, _Seen] = {}
        signals = symbols.record("signal_struct", SIGNAL)
        self._signal_members = self.memory.unpacker(signals)
        self._raw_signal = self.memory.raw_unpacker(signals)
        self._arrange_signal = signals.arranger()
        self._at = (
            record.position(_FIELD["next"]),
            record.position(_FIELD["signal"]),
            signals.position(SignalStruct._fields.index("nr_threads")),
        )
        self.mm = unpacker("mm_struct", MM)
        self.cred = unpacker("cred", CRED)
        self._tasks_offset = symbols.offset("task_struct", "tasks")
        self._thread = unpacker(
            "task_struct",
            (field("pid"), field("start_boottime", "real_start_time"), field("thread_node.next")),
        )
        self._thread_head = symbols.offset("signal_struct", "thread_head")
        self._thread_node = symbols.offset("task_struct", "thread_node")
        self._counters = self._counter_readers()

    def task(self, address: int) -> TaskStruct:
        """The `task_struct` at a guest-virtual address.  Raises `MemoryFault`."""
        return TaskStruct._make(self._task_members(address))

    def signal(self, address: int) -> SignalStruct:
        """The `signal_struct` at a guest-virtual address.  Raises `MemoryFault`."""
        return SignalStruct._make(self._signal_members(address))

    def user_space(self, asid: int) -> AddressSpace:
        """The address space of a process: ``asid`` is the gpa of its top-level page table (`mm->pgd`)."""
        return self.machine.address_space(self.memory.physical, asid, self.place.levels)

    def address(self, *names: str) -> int:
        """Run-time guest-virtual address of the first of ``names`` that exists.  Raises `SymbolsMissing`."""
        return self.symbols.address(*names) + self._shift

    def symbol(self, *names: str) -> int | None:
        """Like `address`; None if the kernel has none of these symbols."""
        found = self.symbols.symbol(*names)
        return None if found is None else found + self._shift

    def unpacker(self, type_name: str, fields: tuple[Any, ...]) -> Callable[[int], tuple[Any, ...]]:
        """A function from the guest-virtual address of a C object to the values of ``fields``.

        Raises `SymbolsMissing`; the function raises `MemoryFault`.
        """
        return self.memory.unpacker(self.symbols.record(type_name, fields))

    def _direct_map(self) -> int:
        symbol = self.symbol("page_offset_base")
        if symbol is not None:  # CONFIG_DYNAMIC_MEMORY_LAYOUT
            return self.memory.u64(symbol)
        return self.facts.direct_map[self.place.levels]

    def _counter_readers(self) -> tuple[Callable[[], int], Callable[[], int], Callable[[], int]]:
        cursor = self.symbols.offset("pid_namespace", "idr.idr_next")
        value = self.memory.value
        return (
            value(self.address("total_forks"), "Q"),
            value(self.address("nr_threads"), "I"),
            value(self.address("init_pid_ns") + cursor, "I"),
        )

    def counters(self) -> Counters:
        """`total_forks`, `nr_threads` and the pid allocator's cursor; O(1).  Raises `MemoryFault`."""
        forks, threads, cursor = self._counters
        return Counters(forks(), threads(), cursor())

    def forget(self) -> None:
        """Drop the tasks kept for reuse: the next snapshot reads every task."""
        self._seen = {}

    def snapshot(self, time_ns: int, trigger: str) -> Snapshot:
        """A snapshot of all thread groups: kernel threads and zombies included, the idle task not.

        ``time_ns`` and ``trigger`` are copied into the result.  Raises `MemoryFault` if the counters cannot
        be read; a list that cannot be read gives a torn snapshot.
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
        """(tasks, all tids, whether the list was complete and led back to `init_task`).

        The raw members of each task are compared with those of the last snapshot.  If they are equal, as for
        most tasks of a guest, its `Task` is reused.
        """
        read, signal_of = self._raw_task, self._raw_signal
        offset, head = self._tasks_offset, self._init_task
        at_next, at_signal, at_threads = self._at
        before, now = self._seen, {}
        threads: list[tuple[int, int]] = []
        unreadable: set[int] = set()  # freed during the walk: a pointer in them is no longer valid
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

    def read_task(self, address: int, found: TaskStruct | None = None) -> Task:
        """The leader of the thread group to which the `task_struct` at ``address`` belongs.

        ``found``: what `task` has just read there, to save reading it again.  Raises `MemoryFault`.
        """
        found = found or self.task(address)
        if found.group_leader != address:
            address, found = found.group_leader, self.task(found.group_leader)
        signal = self.signal(found.signal)
        try:
            return self._task(address, found, signal)
        except MemoryFault:
            if not found.flags & PF_EXITING:
                raise
            # exit_mm() dropped the mm between the two reads; the rest of the task is still valid.
            return self._task(address, found._replace(mm=0), signal)

    def _task(self, address: int, raw: tuple[Any, ...], signal: tuple[Any, ...]) -> Task:
        (_, _, tgid, flags, exit_state, exit_code, parent, start) = raw[:8]
        (generation, mm, cred, _, _, comm, execve) = raw[8:]
        live, signal_flags, group_code, _, _ = signal
        end = comm.find(b"\0")
        # Positional: keyword arguments take as long as everything else here together.
        return Task(
            Identity(tgid, start),
            address,
            self._tgid(parent)[0] if parent else 0,
            parent,
            comm[:end] if end >= 0 else comm,
            flags,
            generation,
            mm,
            # asid: the gpa of the pgd, not masked like a page-table root out of a register. Without PTI a
            # pgd is one page at any page since 6.15 (arch/x86/include/asm/pgalloc.h: pgd_allocation_order),
            # so bit 12 belongs to its address.
            self.memory.gpa(self.mm(mm)[0]) if mm else 0,
            self.cred(cred)[0],
            live,
            exit_state,
            group_code if signal_flags & SIGNAL_GROUP_EXIT else exit_code,
            # kernel: a usermode helper has neither PF_KTHREAD nor an mm until it execs (since 5.19, kernel
            # commit 343f4c49f243); an exiting process has no mm either, but is no kernel thread.
            flags & PF_KTHREAD != 0 or (not mm and not flags & PF_EXITING),
            flags & PF_FORKNOEXEC != 0,
            # dead: signal->live falls first; exit_state is set once both exit codes are final.
            live <= 0 and exit_state != 0,
            execve != 0,
        )

    def _threads(self, signal: int, most: int) -> Iterator[tuple[int, int]]:
        """(tid, start_boottime) of at most ``most`` threads of a `signal_struct`, in list order."""
        group = self.signal(signal)
        node, head = group.first_thread, signal + self._thread_head
        seen: set[int] = set()
        for _ in range(min(group.nr_threads, most)):
            if node == head or node in seen:
                return
            seen.add(node)
            pid, start, node = self._thread(node - self._thread_node)
            yield pid, start
