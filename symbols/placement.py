"""Where the kernel image lies, physically and virtually, told by the page tables that map it.

Theory of operation.  x86-64 Linux maps its own image with 2 MiB pages from ``__START_KERNEL_map``
(0xffffffff80000000): entry 510 of a table called ``level3_kernel_pgt``, whose entry 511 is the fixmap and
which has no other entry.  The page-middle table behind entry 510 names every piece of the image, so it
gives the run-time virtual address of ``_text``, its gpa and the extent at once; with four-level paging the
top-level table's entry 511 points at ``level3_kernel_pgt``, with five levels there is one table between.

Two ways lead to that table:

- *The real-mode trampoline.*  To start further processors (and to wake from sleep) the kernel keeps, in the
  first MiB of RAM, a top-level page table whose entry 511 is a copy of its own (``setup_real_mode`` in
  arch/x86/realmode/init.c).  Every boot writes it anew: 160 pages to look at, whatever the size of the guest,
  and the kernel of an earlier boot does not get there by accident.
- *Every page of RAM*, if that fails: entries 510 and 511 of each page, without reading the rest.

Neither trusts anything: what comes out is a candidate, which `symbols.alive` judges by what the kernel says
of itself.

Warts.  ``_text`` is the first mapped page because ``cleanup_highmap`` removes the mapping before it.  The
link address of ``_text`` is not in the image; it is 0xffffffff81000000 unless CONFIG_PHYSICAL_START was
changed, and then KERNELOFFSET of VMCOREINFO gives it (`symbols.guest`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from live.arch.x86_64 import FRAME, LARGE, PRESENT, SOFTWARE
from live.core.errors import MemoryFault
from live.core.memory import PAGE_SIZE, MemoryReader
from symbols.window import Bytes, below, clip, pages, quads

START_KERNEL_MAP = 0xFFFFFFFF80000000
LINK_TEXT = 0xFFFFFFFF81000000
LOW_MEMORY = 1 << 20
PMD = 1 << 21

_MUST_BE_ZERO = SOFTWARE | 0xF00  # ignored by the processor; the kernel sets none of them in its tables
MAX_CANDIDATES = 64
_NEAR = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A kernel image in RAM.  ``text`` and ``end`` are gpa, ``va`` is the run-time address of ``_text``.

    ``dtb`` is the gpa of init_top_pgt, ``la57`` says whether page tables have five levels.
    """

    text: int
    end: int
    va: int
    dtb: int
    la57: bool

    @property
    def levels(self) -> int:
        """Of page tables."""
        return 5 if self.la57 else 4

    @property
    def phys_base(self) -> int:
        """gpa = va - __START_KERNEL_map + phys_base."""
        return self.text - (self.va - START_KERNEL_MAP)

    def gpa(self, va: int) -> int:
        """Gpa of a virtual address in the image."""
        return va - self.va + self.text


def image(memory: MemoryReader, placement: Placement) -> Bytes:
    """The bytes of the image, from ``_text`` on."""
    start, end = clip(memory, placement.text, placement.end)
    return memory.read(start, end - start)


def locate(memory: MemoryReader, *, everywhere: bool = False) -> list[Placement]:
    """Candidates, from the trampoline, or (``everywhere``) from every page of RAM; each image once."""
    found: dict[int, Placement] = {}
    for level3 in _from_all_pages(memory) if everywhere else _from_trampoline(memory):
        if level3 in found or len(found) >= MAX_CANDIDATES:
            continue
        placement = _placement(memory, level3)
        if placement is not None:
            found[level3] = placement
    return list(found.values())


def _is_table(entry: int) -> bool:
    return bool(entry & PRESENT) and not entry & (LARGE | _MUST_BE_ZERO) and entry & FRAME != 0


def _table(memory: MemoryReader, entry: int) -> memoryview | None:
    if not _is_table(entry):
        return None
    try:
        return quads(memory.read(entry & FRAME, PAGE_SIZE))
    except MemoryFault:
        return None


def trampoline_tables(memory: MemoryReader) -> Iterator[int]:
    """Gpas of what may be tables that the trampoline names: level3_kernel_pgt, or level4_kernel_pgt.

    Whether there is RAM is not asked.
    """
    for _, data in pages(memory, below(memory.segments, LOW_MEMORY)):
        for entry in quads(data)[511::512].tolist():
            if _is_table(entry):
                yield entry & FRAME


def leads_to_image(table: memoryview) -> bool:
    """Whether 512 entries may be level3_kernel_pgt or level4_kernel_pgt, which map nothing but the image."""
    return _is_table(table[511]) and not any(table[:510])


def _from_trampoline(memory: MemoryReader) -> Iterator[int]:
    for gpa in trampoline_tables(memory):
        top = _table(memory, gpa | PRESENT)
        if top is None:
            continue
        yield gpa
        if _is_table(top[511]):
            yield top[511] & FRAME


def _from_all_pages(memory: MemoryReader) -> Iterator[int]:
    for start, data in pages(memory, memory.populated()):
        words = quads(data)
        images, fixmaps = words[510::512].tolist(), words[511::512].tolist()
        for number, entry in enumerate(images):
            if entry & PRESENT and _is_table(entry) and _is_table(fixmaps[number]):
                yield start + number * PAGE_SIZE


def _placement(memory: MemoryReader, level3: int) -> Placement | None:
    table = _table(memory, level3 | PRESENT)
    if table is None or not leads_to_image(table):
        return None
    pmd = _table(memory, table[510])
    if pmd is None:
        return None
    runs = list(_mapped(memory, pmd))
    if not runs:
        return None
    va, text = runs[0]
    # Only what continues linearly from _text is the image: behind it, vmalloc'ed leftovers may be mapped.
    end = max(gpa + PMD for at, gpa in runs if gpa - text == at - va)
    start, end = clip(memory, text, end)
    if end - start < PMD or not start <= level3 < end:
        return None
    root = _root(memory, start, end, level3)
    if root is None:
        return None
    return Placement(text=text, end=end, va=va, dtb=root[0], la57=root[1])


def _mapped(memory: MemoryReader, pmd: memoryview) -> Iterator[tuple[int, int]]:
    """(va, gpa) of each 2 MiB piece, from a large page or from the first present small one."""
    for index, entry in enumerate(pmd.tolist()):
        va = START_KERNEL_MAP + index * PMD
        if not entry & PRESENT:
            continue
        if entry & LARGE:
            yield va, entry & FRAME & -PMD
            continue
        ptes = _table(memory, entry)
        if ptes is None:
            continue
        for number, pte in enumerate(ptes.tolist()):
            if pte & PRESENT:
                gpa = (pte & FRAME) - number * PAGE_SIZE
                if gpa >= 0:
                    yield va, gpa
                break


def _root(memory: MemoryReader, start: int, end: int, level3: int) -> tuple[int, bool] | None:
    """(gpa, la57) of init_top_pgt: the page of the image that leads to ``level3`` and maps most beside it.

    All of them are page tables of head_64.S, near each other; the rest of the image is looked at only if not.
    """
    near = max(start, level3 - _NEAR), min(end, level3 + _NEAR)
    return _root_in(memory, *near, level3) or _root_in(memory, start, end, level3)


def _root_in(memory: MemoryReader, start: int, end: int, level3: int) -> tuple[int, bool] | None:
    start += -start % PAGE_SIZE
    words = quads(memory.read(start, end - start))
    parents: dict[int, list[int]] = {}
    for number, entry in enumerate(words[511::512].tolist()):
        if _is_table(entry):
            parents.setdefault(entry & FRAME, []).append(start + number * PAGE_SIZE)

    def kernel_half(gpa: int) -> int:
        at = (gpa - start) // 8
        return sum(1 for entry in words[at + 256 : at + 512].tolist() if entry)

    best: tuple[int, int, bool] | None = None
    for parent in parents.get(level3, ()):
        # With five levels the table above level3 has a parent in the image itself.
        above = parents.get(parent, ())
        for gpa, la57 in [(one, True) for one in above] or [(parent, False)]:
            score = kernel_half(gpa)
            if score > 1 and (best is None or score > best[0]):
                best = (score, gpa, la57)
    return (best[1], best[2]) if best else None
