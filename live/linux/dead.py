"""Processes that ended before the image was taken, and of which freed memory still holds the `task_struct`.

Theory of operation
-------------------
The slab allocator does not clear what is freed, and links free objects through one word in their middle.
What remains of a `task_struct` says who it was, when it started and how it ended.  A slab begins at a
multiple of its size, so its objects sit at a few fixed offsets from every multiple of 32 KiB: those at which
the tasks on the list are found.  At each of these places of all RAM, the word that would be `sched_class`
must point to one of the kernel's few scheduling classes; that leaves every `task_struct` that is or was, at
the price of some words per 32 KiB (10 ms per GiB, where searching for the same words everywhere takes 15 s).
Those on the task list are known; of the rest only leaders that had finished exiting are shown, and each
identity once.

Warts: pointers in a freed object lead to memory that may be used otherwise by now, so only what lies in the
object itself is reported.  Kernels with ``init_on_free=1`` leave nothing.
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
    """What is left of a process, and its kernel exit code."""

    process: Process
    exit_code: int


def find(
    kernel: LinuxKernel, tasks: Sequence[Task], *, boot_ns: int | None, time_ns: int
) -> Iterator[Corpse]:
    """The dead that are not among ``tasks`` (the task list), in the order of their starts.

    ``boot_ns``: UTC ns at which the boot clock was 0, if known; ``time_ns``: UTC ns of the image, 0 if
    unknown.
    """
    # The wall clock of an image is as coarse as its timer tick.
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
    """The gpa of each word at one of ``places`` in a 32 KiB block of RAM whose value is ``wanted``."""
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
