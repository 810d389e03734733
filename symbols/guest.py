"""From guest RAM to a living Linux kernel, and from there to its symbol table.

Theory of operation.

1. `symbols.placement` names candidates: where an image lies, virtually and physically.
2. A candidate that the cache knows is recognised by its banner and build-id at the places where they must
   be: three reads.  Otherwise BTF and kallsyms of the image are decoded (`symbols.btf`,
   `symbols.kallsyms`).
3. `symbols.alive` judges it.  A candidate of the trampoline that is alone and alive is the kernel.  Without
   one, every page of RAM is looked at for more candidates.
4. VMCOREINFO is not needed; where the kernel has it, its KERNELOFFSET tells the link address of ``_text``,
   which otherwise is taken to be the usual one.

The KASLR shift is va(_text) - link address of ``_text``; phys_base follows from va and gpa of ``_text``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from live.arch.x86_64 import X86_64
from live.core.errors import MemoryFault, NoKernelFound, SymbolsMissing
from live.core.memory import PAGE_SIZE, MemoryReader
from symbols import btf, kallsyms
from symbols.alive import Vitals, examine, read_u64
from symbols.cache import Cache
from symbols.landmarks import Landmarks, find_build_id, landmarks
from symbols.placement import LINK_TEXT, Placement, image, locate
from symbols.table import KernelTable
from symbols.window import Bytes, pages

Progress = Callable[[float, str], None]
"""Called with a percentage (0..100) and what is being done."""

_KERNEL_OFFSET = re.compile(rb"^KERNELOFFSET=([0-9a-f]{1,16})$", re.MULTILINE)
_BANNER = re.compile(rb"Linux version \d[^\0\n]{10,1000}\n\0")
MAX_BANNER = 2048
_NOT_WHOLE = "the kernel's image in this memory is not whole, it"
_BTF_SYMBOL = "__start_BTF"
"""Where the BTF of a kernel begins that was built with it (include/asm-generic/vmlinux.lds.h)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A living kernel in guest RAM.  Addresses are bytes; ``va`` means a run-time kernel virtual address."""

    banner: str
    """The complete ``linux_banner``, with its newline."""
    build_id: str | None
    """GNU build-id in hex."""
    release: str
    """``uname -r``."""
    kaslr_shift: int
    """va = link-time value (as in the ISF) + kaslr_shift."""
    phys_base: int
    """gpa = va - 0xffffffff80000000 + phys_base, for addresses in the kernel image; may be negative."""
    dtb: int
    """gpa of init_top_pgt (swapper_pg_dir), the kernel's own top-level page table."""
    la57: bool
    """Five-level page tables."""
    text: int
    """gpa of ``_text``."""
    notes: tuple[str, ...] = field(default=())
    """What the user should know of the choice: e.g. a stale kernel of an earlier boot was passed over."""
    placement: Placement = field(repr=False)
    landmarks: Landmarks = field(repr=False)
    decoded: list[KernelTable] = field(default_factory=list, repr=False, compare=False)
    """Types and symbols, if they had to be decoded to find the kernel; `symbol_table` uses them up."""


class ImageIncomplete(SymbolsMissing):
    """Part of a kernel image is not there: it is being loaded, or overwritten, or was built without any."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    placement: Placement
    marks: Landmarks
    table: KernelTable | None
    vitals: Vitals


def find_kernel(
    memory: MemoryReader, *, cache: Cache | None = None, progress: Progress | None = None
) -> Kernel:
    """The living kernel in ``memory``.

    ``cache`` (default: `Cache.default()`) only makes it faster: what is known of a kernel seen before is not
    decoded again.  Raises `NoKernelFound` or `SymbolsMissing`.
    """
    return search(memory, cache or Cache.default(), progress)


def search(memory: MemoryReader, cache: Cache | None, progress: Progress | None = None) -> Kernel:
    """`find_kernel`; without a cache, types and symbols are always decoded and are in the result."""
    report = progress or _silent
    missing: SymbolsMissing | None = None
    incomplete: tuple[Placement, ImageIncomplete] | None = None
    judged: list[_Candidate] = []
    seen: set[Placement] = set()
    for everywhere in (False, True):
        report(10.0 if everywhere else 0.0, "Looking for a Linux kernel")
        for placement in locate(memory, everywhere=everywhere):
            if placement in seen:
                continue
            seen.add(placement)
            try:
                judged.append(_candidate(memory, placement, cache, report))
            except ImageIncomplete as error:
                incomplete = placement, error
            except SymbolsMissing as error:
                missing = error
        if any(not one.vitals.fault for one in judged):
            break
    living = [one for one in judged if not one.vitals.fault]
    if not living:
        if missing is not None:
            raise missing
        raise NoKernelFound(_why_none(memory, judged, incomplete))
    return _chosen(living, judged)


def symbol_table(
    kernel: Kernel,
    memory: MemoryReader,
    cache: Cache | None = None,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Path of the ISF of ``kernel``: from ``cache`` (default: `Cache.default()`), else made from RAM and
    kept there.

    Pruned unless ``full``.  Raises `SymbolsMissing`.
    """
    report = progress or _silent
    cache = cache or Cache.default()
    found = cache.find(kernel.banner, kernel.build_id, full=full)
    if found is not None:
        return found
    if kernel.decoded:
        table = kernel.decoded.pop()  # tens of megabytes that a long-lived Kernel should not hold on to
    else:
        report(20.0, "Decoding the kernel's types and symbols")
        va = kernel.placement.va
        table = decode(image(memory, kernel.placement), va, kernel.kaslr_shift, va)
    report(70.0, "Writing the symbol table")
    path = cache.store(kernel.landmarks, table.isf(full=full), full=full)
    report(100.0, "Symbol table ready")
    return path


def decode(data: Bytes, va: int, kaslr_shift: int, text: int | None) -> KernelTable:
    """Types and symbols of a kernel image that begins at ``va``.

    Raises `ImageIncomplete`, or `SymbolsMissing` if the kernel was built without them.
    """
    try:
        types = btf.find(data)
    except SymbolsMissing as fault:
        raise _without_types(data, va, text, fault) from fault
    symbols = kallsyms.decode(data, va, text)
    return KernelTable(types, symbols, kaslr_shift, banner_at(data, va, symbols))


def _without_types(data: Bytes, va: int, text: int | None, fault: SymbolsMissing) -> SymbolsMissing:
    """What to say of an image without readable BTF: only its kallsyms tell whether it was built with BTF.

    While a guest boots again, the kernel of before is overwritten piece by piece.
    """
    try:
        built_with = _BTF_SYMBOL in kallsyms.decode(data, va, text).names
    except SymbolsMissing:
        return ImageIncomplete(f"{_NOT_WHOLE} has neither types (BTF) nor symbols (kallsyms)")
    return (
        ImageIncomplete(f"{_NOT_WHOLE} was built with types (BTF), which are damaged")
        if built_with
        else fault
    )


def banner_at(data: Bytes, va: int, symbols: kallsyms.Kallsyms) -> str:
    """The ``linux_banner`` of an image that begins at ``va``.  Raises `SymbolsMissing`."""
    try:
        start = symbols.values[symbols.names.index("linux_banner")] - va
    except ValueError:
        match = _BANNER.search(data)
        start = match.start() if match else -1
    raw = bytes(data[start : start + MAX_BANNER]).split(b"\0", 1)[0] if 0 <= start < len(data) else b""
    if not raw.startswith(b"Linux version "):
        raise SymbolsMissing(
            "this kernel's linux_banner is not where its kallsyms says: the image is damaged; read the "
            "memory again"
        )
    return raw.decode("latin-1")


def release_of(banner: str) -> str:
    """``uname -r`` from a banner."""
    words = banner.split()
    return words[2] if len(words) > 2 else ""


def _silent(_percent: float, _text: str) -> None:
    pass


def _candidate(
    memory: MemoryReader, placement: Placement, cache: Cache | None, report: Progress
) -> _Candidate:
    marks = _recognise(memory, placement, cache) if cache is not None else None
    table = None
    if marks is None:
        report(20.0, "Decoding the kernel's types and symbols")
        data = image(memory, placement)
        link_text = LINK_TEXT
        table = decode(data, placement.va, placement.va - link_text, placement.va)
        marks = landmarks_of(table, data, link_text)
        true_text = _true_link_text(memory, placement, marks)
        if true_text != link_text:
            link_text = true_text
            table = decode(data, placement.va, placement.va - link_text, placement.va)
            marks = landmarks_of(table, data, link_text)
    return _Candidate(placement, marks, table, examine(memory, placement, marks))


def landmarks_of(table: KernelTable, data: Bytes, link_text: int) -> Landmarks:
    """Landmarks of a decoded image.  Raises `SymbolsMissing`."""
    edges = [table.addresses.get(name, 0) - link_text for name in ("__start_notes", "__stop_notes")]
    build_id, place = find_build_id(data, *edges)
    return landmarks(table, (build_id, place + link_text if build_id else 0), link_text)


def _true_link_text(memory: MemoryReader, placement: Placement, marks: Landmarks) -> int:
    """Link address of ``_text``, from VMCOREINFO's KERNELOFFSET if there is one."""
    if not marks.vmcoreinfo_data:
        return marks.link_text
    try:
        pointer = read_u64(memory, marks.vmcoreinfo_data - marks.link_text + placement.text)
        space = X86_64.address_space(memory, placement.dtb, placement.levels)
        found = _KERNEL_OFFSET.search(space.read_until_fault(pointer, PAGE_SIZE))
    except MemoryFault:
        return marks.link_text
    offset = int(found[1], 16) if found else -1
    return placement.va - offset if found and offset % (1 << 21) == 0 else marks.link_text


def _recognise(memory: MemoryReader, placement: Placement, cache: Cache) -> Landmarks | None:
    for marks in cache.landmarks():
        banner = marks.banner.encode("latin-1") + b"\0"
        try:
            if (
                bytes(memory.read(marks.linux_banner - marks.link_text + placement.text, len(banner)))
                != banner
            ):
                continue
            if marks.build_id and bytes(
                memory.read(marks.notes - marks.link_text + placement.text, 20)
            ) != bytes.fromhex(marks.build_id):
                continue
        except (MemoryFault, ValueError):
            continue
        return marks
    return None


def _chosen(living: list[_Candidate], judged: list[_Candidate]) -> Kernel:
    living.sort(key=lambda one: one.vitals.clock, reverse=True)
    best = living[0]
    notes = []
    if len(living) > 1:
        other = living[1]
        if other.vitals.clock == best.vitals.clock:
            raise NoKernelFound(
                f"two kernels in this memory look alive, {release_of(best.marks.banner)} at gpa "
                f"{best.placement.text:#x} and {release_of(other.marks.banner)} at "
                f"{other.placement.text:#x}, and their "
                "clocks agree: let the guest run for a second and try again"
            )
        notes.append(
            f"another intact kernel ({release_of(other.marks.banner)} at gpa {other.placement.text:#x}) "
            "was passed over: "
            f"its clock is {best.vitals.clock - other.vitals.clock} s behind, so it no longer runs"
        )
    notes.extend(
        f"a kernel of an earlier boot ({release_of(one.marks.banner)} at gpa {one.placement.text:#x}) was "
        "passed over: "
        f"{one.vitals.fault}"
        for one in judged
        if one.vitals.fault
    )
    placement, marks = best.placement, best.marks
    return Kernel(
        banner=marks.banner,
        build_id=marks.build_id or None,
        release=release_of(marks.banner),
        kaslr_shift=placement.va - marks.link_text,
        phys_base=placement.phys_base,
        dtb=marks.init_top_pgt - marks.link_text + placement.text,
        la57=placement.la57,
        text=placement.text,
        notes=tuple(notes),
        placement=placement,
        landmarks=marks,
        decoded=[best.table] if best.table is not None else [],
    )


def _why_none(
    memory: MemoryReader, judged: list[_Candidate], incomplete: tuple[Placement, ImageIncomplete] | None
) -> str:
    if judged:
        one = judged[0]
        return (
            f"the kernel {release_of(one.marks.banner)} in this memory does not run: {one.vitals.fault}; "
            "it is left from an earlier boot, or the copy is damaged: try again when the guest has booted"
        )
    if incomplete is not None:
        place, why = incomplete
        return f"{why} (gpa {place.text:#x}): the guest boots, or boots again; try again in a few seconds"
    banner = next(_banners(memory), None)
    size = sum(segment.length for segment in memory.segments) >> 20
    if banner is not None:
        return (
            f"{size} MiB of memory hold the text of {release_of(banner)!r} but no page tables of a "
            "running kernel: "
            "the guest is still booting, RAM is left from an earlier boot, or a file is not in "
            "guest-physical order "
            "(RAM above the PCI hole needs its segments)"
        )
    return (
        f"no Linux kernel was found in {size} MiB of memory: is it the RAM of an x86-64 Linux guest, and "
        "has the guest "
        "got past its boot loader?"
    )


def _banners(memory: MemoryReader) -> Iterator[str]:
    for _, data in pages(memory, memory.populated()):
        for match in _BANNER.finditer(data):
            yield bytes(data[match.start() : match.end() - 1]).decode("latin-1")
