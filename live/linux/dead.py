"""Processes that ended before the image was taken, from `task_struct` objects in freed memory.

Theory of operation
-------------------
The slab allocator does not clear freed objects; it overwrites only one word in the middle of each (the
freelist pointer).  The rest of a freed `task_struct` still holds the identity, the start time and the exit
code.

A slab begins at a multiple of its size, so its objects lie at a few fixed offsets from every multiple of
32 KiB.  The tasks on the task list show these offsets.  The search visits them in all of RAM and accepts a
candidate whose `sched_class` points to one of the kernel's scheduling classes.  This reads a few words per
32 KiB and takes 10 ms per GiB; a search of every word takes 15 s.

Of the candidates that are not on the task list, only thread-group leaders that have finished exiting are
reported, each identity once.

Known warts
-----------
* Pointers in a freed object may lead to reused memory, so only members of the object itself are reported.
* A kernel with ``init_on_free=1`` clears freed objects: nothing is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Identity, Process
from live.core.memory import GuestVirtual, MemoryReader
from live.core.snapshot import Task
from live.linux.kernel import PF_EXITING, PF_KTHREAD, LinuxKernel
from live.linux.layout import field

_CLASSES = ("fair_sched_class", "ext_sched_class", "rt_sched_class", "dl_sched_class", "idle_sched_class")
_BLOCK = 32 << 10
"""The largest slab (PAGE_ALLOC_COSTLY_ORDER, 8 pages); smaller ones divide it."""
_CHUNK = 64 << 20
_EXIT_STATES = (0x10, 0x20, 0x30)  # EXIT_DEAD, EXIT_ZOMBIE, both (EXIT_TRACE)
_MAX_PID = 1 << 22  # PID_MAX_LIMIT
_MAX_FOUND = 100_000
_TICK_NS = 1_000_000_000

_MEMBERS = (
    field("pid"),
    field("tgid"),
    field("flags"),
    field("exit_state"),
    field("exit_code"),
    field("start_boottime", "real_start_time"),
    field("self_exec_id"),
    field("group_leader"),
    field("comm"),
)


class Corpse(NamedTuple):
    """A process that has ended, and `task_struct.exit_code` (see `ExitStatus.from_kernel`)."""

    process: Process
    exit_code: int


def find(
    kernel: LinuxKernel, tasks: Sequence[Task], *, boot_ns: int | None, time_ns: int
) -> Iterator[Corpse]:
    """Ended processes that are not in ``tasks`` (the task list), ordered by start time.

    ``boot_ns``: UTC ns at which the boot clock was 0, None if unknown.  ``time_ns``: UTC ns at which the
    image was taken, 0 if unknown; a candidate with a later start time is rejected.  Yields nothing if the
    symbol table lacks a needed member.
    """
    # The wall clock in an image is updated once per timer tick.
    uptime = time_ns - boot_ns + _TICK_NS if time_ns and boot_ns is not None else 1 << 63
    classes = {found for found in map(kernel.symbol, _CLASSES) if found is not None}
    try:
        offset = kernel.symbols.offset("task_struct", "sched_class")
        read = kernel.unpacker("task_struct", _MEMBERS)
    except SymbolsMissing:
        return
    direct = kernel.memory.direct
    places = {(task.address - direct + offset) % _BLOCK for task in tasks}
    seen = {task.identity for task in tasks}
    corpses = []
    for gpa in _words(kernel.memory.physical, sorted(places), classes):
        corpse = _corpse(read, direct + gpa - offset, boot_ns, uptime)
        if corpse is not None and corpse.process.identity not in seen and len(seen) < _MAX_FOUND:
            seen.add(corpse.process.identity)
            corpses.append(corpse)
    corpses.sort(key=lambda corpse: corpse.process.identity.start)
    yield from corpses


def _words(memory: MemoryReader, places: Sequence[int], wanted: set[int]) -> Iterator[int]:
    """Gpas of words (u64) that are in ``wanted``, at the offsets ``places`` in each 32 KiB block of RAM."""
    for segment in memory.segments:
        first = segment.start + -segment.start % _BLOCK
        for start in range(first, segment.end - _BLOCK + 1, _CHUNK):
            length = min(_CHUNK, segment.end - start) & -_BLOCK
            try:
                words = memoryview(memory.read(start, length)).cast("Q")
            except MemoryFault:
                continue
            for place in places:
                for number, word in enumerate(words[place // 8 :: _BLOCK // 8].tolist()):
                    if word in wanted:
                        yield start + number * _BLOCK + place


def _corpse(
    read: Callable[[int], tuple[Any, ...]], address: int, boot_ns: int | None, uptime: int
) -> Corpse | None:
    try:
        pid, tgid, flags, state, code, start, generation, leader, comm = read(address)
    except MemoryFault:
        return None
    name = comm.partition(b"\0")[0]
    leads = 0 < pid == tgid < _MAX_PID and leader == address
    ended = flags & PF_EXITING and state in _EXIT_STATES
    if not (leads and ended and 0 < start <= uptime and name):
        return None
    process = Process(
        identity=Identity(pid, start),
        generation=generation,
        pid=pid,
        ppid=0,
        comm=name.decode("utf-8", "surrogateescape"),
        kernel=bool(flags & PF_KTHREAD),
        task=GuestVirtual(address),
        asid=None,
        start_ns=boot_ns + start if boot_ns is not None else None,
    )
    return Corpse(process, code)
