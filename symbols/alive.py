"""Is this kernel the one that runs?  The signs of life that a candidate in RAM has to show.

Theory of operation.  RAM can hold kernels that do not run: of an earlier boot (RAM survives a reset), of a
guest inside the guest, a kdump kernel's dead predecessor, or plain file contents.  What runs is consistent:

1. its page tables, walked from its own init_top_pgt, map its text to where it was found;
2. the direct map does too (``page_offset_base + gpa`` leads to gpa): an old kernel's tables for that were
   allocated memory, and are overwritten soon;
3. ``init_task`` is called ``swapper``, and its list of tasks is linked to and fro through the page tables.
   A guest that runs links and unlinks tasks meanwhile, so its list may look broken for a moment: a dead one
   stays so.

If several pass (kdump, or an old kernel not yet overwritten), the one whose clock is ahead is the one that
runs, since a dead kernel's clock stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

from live.arch.x86_64 import X86_64
from live.core.errors import MemoryFault
from live.core.machine import AddressSpace
from live.core.memory import MemoryReader
from symbols.landmarks import Landmarks
from symbols.placement import Placement

LINKS = 8
"""So many links of the task list are followed in each direction."""
TRIES = 32
"""So often is a broken list looked at before it counts as such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """``fault`` says why the kernel is not alive ("" if it is), ``clock`` is its wall clock in seconds."""

    fault: str
    clock: int = 0


def read_u64(memory: MemoryReader, gpa: int) -> int:
    """The little-endian quadword at ``gpa``.  Raises `MemoryFault`."""
    return int.from_bytes(memory.read(gpa, 8), "little")


def examine(memory: MemoryReader, placement: Placement, marks: Landmarks) -> Vitals:
    """The signs of life of the kernel with these landmarks at this place."""
    try:
        return _examine(memory, placement, marks)
    except MemoryFault as fault:
        return Vitals(fault=f"its structures point to nowhere ({fault})")


def _examine(memory: MemoryReader, placement: Placement, marks: Landmarks) -> Vitals:
    def gpa(link: int) -> int:
        return link - marks.link_text + placement.text

    space = X86_64.address_space(memory, gpa(marks.init_top_pgt), placement.levels)
    if space.gpa(placement.va) != placement.text:
        return Vitals(fault="its page tables map its code elsewhere")
    if marks.page_offset_base:
        direct = read_u64(memory, gpa(marks.page_offset_base))
        if space.gpa(direct + placement.text) != placement.text:
            return Vitals(fault="its direct map leads elsewhere")
    init_task = gpa(marks.init_task)
    if bytes(memory.read(init_task + marks.comm, 7)) != b"swapper":
        return Vitals(fault="its init_task is not called swapper")
    head = marks.init_task - marks.link_text + placement.va + marks.tasks
    place = init_task + marks.tasks
    if read_u64(memory, place) == head:
        return Vitals(fault="it has no task beside init_task")
    if not any(_linked(memory, space, head, place) for _ in range(TRIES)):
        return Vitals(fault="its list of tasks is broken")
    clock = read_u64(memory, gpa(marks.wall_clock)) if marks.wall_clock else 0
    return Vitals(fault="", clock=clock)


def _linked(memory: MemoryReader, space: AddressSpace, head: int, start: int) -> bool:
    """Whether each list_head that follows ``head`` (a va, at gpa ``start``) points back to the last one."""
    for forth, back in ((0, 8), (8, 0)):
        at, place = head, start
        for _ in range(LINKS):
            try:
                following = read_u64(memory, place + forth)
                place = space.gpa(following)
                if read_u64(memory, place + back) != at:
                    return False
            except MemoryFault:  # or a task that was freed, and its memory used again, while we followed it
                return False
            if following == head:
                break
            at = following
    return True
