"""Synthetic kernels, built byte by byte: BTF, kallsyms in each layout, page tables, and RAM with all
of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from live.core.errors import MemoryFault
from live.core.memory import InPlace, Segment

START_KERNEL_MAP = 0xFFFFFFFF80000000
LINK_TEXT = 0xFFFFFFFF81000000
MIB = 1 << 20
BANNER = "Linux version 6.1.0-test (builder@host) (gcc 12) #1 SMP Test 6.1.1 (2026-01-01)\n"
BUILD_ID = bytes(range(20))


class Ram(InPlace):
    """A MemoryReader over bytes; ``flat=False`` makes copies, as a reader over a socket would."""

    def __init__(self, size: int, start: int = 0, *, flat: bool = True) -> None:
        self.data = bytearray(size)
        self.start = start
        self.description = "bytes of a test"
        self.segments = [Segment(start=start, length=size)]
        self.reads = 0
        self._flat = flat

    @property
    def flat(self) -> memoryview | None:
        return memoryview(self.data) if self._flat and not self.start else None

    def read(self, gpa: int, length: int) -> bytes | memoryview:
        self.reads += 1
        at = gpa - self.start
        if at < 0 or at + length > len(self.data) or length < 0:
            raise MemoryFault(gpa)
        view = memoryview(self.data)[at : at + length]
        return view if self._flat else bytes(view)

    def write(self, gpa: int, data: bytes) -> None:
        self.data[gpa - self.start : gpa - self.start + len(data)] = data

    def word(self, gpa: int, value: int) -> None:
        self.write(gpa, struct.pack("<Q", value & (1 << 64) - 1))


class BtfBuilder:
    """Collects types; methods return type numbers."""

    def __init__(self) -> None:
        self.types = bytearray()
        self.strings = bytearray(1)
        self.count = 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, size: int, *words: int, parts: int = 0, flag: bool = False) -> int:
        info = kind << 24 | parts | int(flag) << 31
        self.types += struct.pack(f"<{3 + len(words)}I", self.string(name), info, size, *words)
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, *, signed: bool = False, boolean: bool = False) -> int:
        return self.add(1, name, size, (int(signed) | 4 * int(boolean)) << 24 | size * 8)

    def pointer(self, target: int) -> int:
        return self.add(2, "", target)

    def array(self, element: int, count: int) -> int:
        return self.add(3, "", 0, element, element, count)

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], union: bool = False, flag: bool = False
    ) -> int:
        """Members are (name, type, bit offset); with ``flag`` the offset has the bit size in its upper
        byte.
        """
        words = [word for text, number, offset in members for word in (self.string(text), number, offset)]
        return self.add(5 if union else 4, name, size, *words, parts=len(members), flag=flag)

    def enum(self, name: str, constants: dict[str, int], *, size: int = 4, signed: bool = False) -> int:
        words = [w for text, value in constants.items() for w in (self.string(text), value & 0xFFFFFFFF)]
        return self.add(6, name, size, *words, parts=len(constants), flag=signed)

    def typedef(self, name: str, target: int) -> int:
        return self.add(8, name, target)

    def blob(self) -> bytes:
        header = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + bytes(self.types) + bytes(self.strings)


def kernel_btf() -> BtfBuilder:
    """The types that a kernel must have, small."""
    b = BtfBuilder()
    char = b.integer("char", 1, signed=True)
    b.integer("unsigned char", 1)
    integer = b.integer("int", 4, signed=True)
    unsigned = b.integer("unsigned int", 4)
    long = b.integer("long unsigned int", 8)
    comm = b.array(char, 16)
    list_head = b.count + 2  # the pointer comes first and refers forward
    node = b.pointer(list_head)
    b.struct("list_head", 16, ("next", node, 0), ("prev", node, 64))
    state = b.enum("pid_type", {"PIDTYPE_PID": 0, "PIDTYPE_TGID": 1})
    counter = b.struct("", 4, ("counter", integer, 0))
    atomic = b.typedef("atomic_t", counter)
    inner = b.struct("", 8, ("low", unsigned, 0), ("high", unsigned, 32))
    b.struct(
        "task_struct",
        128,
        ("flags", unsigned, 0),
        ("usage", atomic, 32),
        ("tasks", list_head, 8 * 8),
        ("comm", comm, 24 * 8),
        ("pid", integer, 40 * 8),
        ("type", state, 44 * 8),
        ("", inner, 48 * 8),
    )
    timekeeper = b.struct("timekeeper", 64, ("mult", unsigned, 0), ("xtime_sec", long, 16 * 8))
    b.struct("", 72, ("seq", unsigned, 0), ("timekeeper", timekeeper, 64))
    return b


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How kallsyms is written."""

    encoding: str = "percpu"
    new_order: bool = False
    seqs: bool = False
    marker: int = 4
    align: int = 8


LAYOUTS = {
    "4.19": Layout(encoding="percpu", marker=8),
    "absolute addresses": Layout(encoding="absolute"),
    "plain relative": Layout(encoding="relative"),
    "5.10": Layout(),
    "6.1 with back-ported seqs_of_names": Layout(seqs=True),
    "6.4": Layout(new_order=True, seqs=True),
    "6.15": Layout(new_order=True, seqs=True, encoding="relative"),
    "absolute in the new order": Layout(new_order=True, seqs=True, encoding="absolute"),
    "7.0": Layout(new_order=True, seqs=True, encoding="place", align=4),
}


def tokens() -> list[bytes]:
    """256 tokens: each character that names use stands for itself, some of the rest for pairs."""
    plain = set(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.$")
    pairs = iter([bytes((a, b)) for a in b"_abcdestr" for b in b"aeiou_rstlnx"] * 3)
    return [bytes((code,)) if code in plain else next(pairs) for code in range(256)]


def encode_name(name: bytes, table: list[bytes]) -> bytes:
    codes = {token: code for code, token in enumerate(table)}
    out = bytearray()
    while name:
        take = 2 if name[:2] in codes else 1
        out.append(codes[name[:take]])
        name = name[take:]
    return bytes(out)


def _names(symbols: list[tuple[int, str, str]], table: list[bytes]) -> tuple[bytes, list[int]]:
    names = bytearray()
    marks = []
    for number, (_, kind, name) in enumerate(symbols):
        if number % 256 == 0:
            marks.append(len(names))
        encoded = encode_name((kind + name).encode(), table)
        if len(encoded) < 128:
            names.append(len(encoded))
        else:
            names += bytes((len(encoded) & 0x7F | 0x80, len(encoded) >> 7))
        names += encoded
    return bytes(names), marks


def kallsyms_blob(  # noqa: PLR0915 - one table after the other
    symbols: list[tuple[int, str, str]], layout: Layout, va: int
) -> bytes:
    """The tables for (value, kind, name) symbols in address order; the blob will be at ``va``."""
    table = tokens()
    count = len(symbols)
    out = bytearray()

    def align(to: int = layout.align) -> None:
        out.extend(bytes(-len(out) % to))

    names, marks = _names(symbols, table)
    base = next(value for value, _, _ in symbols if value >= START_KERNEL_MAP)

    def values() -> None:
        align()
        if layout.encoding == "absolute":
            align(8)
            out.extend(struct.pack(f"<{count}Q", *(value for value, _, _ in symbols)))
            return
        if layout.encoding == "place":
            first = va + len(out)
            out.extend(struct.pack(f"<{count}i", *(v - first - 4 * n for n, (v, _, _) in enumerate(symbols))))
            return
        for value, _, _ in symbols:
            if layout.encoding == "relative":
                out.extend(struct.pack("<i", value - base))
            else:
                out.extend(struct.pack("<i", value if value < START_KERNEL_MAP else base - 1 - value))
        align(8)
        out.extend(struct.pack("<Q", base))

    def head() -> None:
        align()
        out.extend(struct.pack("<I", count))
        align()
        out.extend(names)
        align()
        out.extend(struct.pack(f"<{len(marks)}{'I' if layout.marker == 4 else 'Q'}", *marks))

    def seqs() -> None:
        if layout.seqs:
            align()
            order = sorted(range(count), key=lambda number: symbols[number][2])
            out.extend(b"".join(number.to_bytes(3, "big") for number in order))

    def token_tables() -> None:
        align()
        index, at = [], 0
        for token in table:
            index.append(at)
            out.extend(token + b"\0")
            at += len(token) + 1
        align()
        out.extend(struct.pack("<256H", *index))

    if layout.new_order:
        head()
        token_tables()
        values()
        seqs()
    else:
        values()
        head()
        seqs()
        token_tables()
    return bytes(out)


@dataclass(kw_only=True)
class Plan:
    """A synthetic kernel and where it lies."""

    text: int = 16 * MIB
    shift: int = 0x3400000
    la57: bool = False
    layout: Layout = field(default_factory=Layout)
    banner: str = BANNER
    clock: int = 1_700_000_000
    trampoline: int = 0x9C000
    btf: bool = True
    built_with_btf: bool = False
    """Its kallsyms say where the BTF is, whether or not it is there."""
    kallsyms: bool = True
    fillers: int = 1500
    top_tables: int = 0x100000
    """Where the tables and the task outside of the image go (gpa)."""

    @property
    def va(self) -> int:
        return LINK_TEXT + self.shift

    def gpa(self, link: int) -> int:
        return link - LINK_TEXT + self.text


SIZE = 6 * MIB
SYMBOLS = {
    "__start_notes": 0x1000,
    "__stop_notes": 0x1040,
    "linux_banner": 0x2000,
    "vmcoreinfo_data": 0x3000,
    "page_offset_base": 0x3008,
    "tk_core": 0x3100,
    "init_task": 0x4000,
    "init_top_pgt": 0x10000,
    "level4_kernel_pgt": 0x11000,
    "level3_kernel_pgt": 0x12000,
    "level2_kernel_pgt": 0x13000,
    "level2_fixmap_pgt": 0x14000,
}
PERCPU = {"current_task": 0x1FBC0, "fixed_percpu_data": 0}


def symbols_of(plan: Plan) -> list[tuple[int, str, str]]:
    """(run-time value, kind, name), ascending."""
    absolute = plan.layout.encoding in ("percpu", "absolute")
    result = [(value, "A", name) for name, value in PERCPU.items() if absolute]
    result += [(plan.va, "T", "_text"), (plan.va, "T", "_stext"), (plan.va + 0x40, "t", "twin")]
    result += [(plan.va + 0x80 + 16 * n, "t", f"function_{n}") for n in range(plan.fillers)]
    result += [(plan.va + 0x100000 + value, "D", name) for name, value in SYMBOLS.items()]
    result += [(plan.va + SIZE, "B", "_end")]
    result += [(plan.va + 0x400000, "R", "__start_BTF")] * plan.built_with_btf
    return sorted(result)


def link(name: str) -> int:
    """Link address of one of `SYMBOLS`."""
    return LINK_TEXT + 0x100000 + SYMBOLS[name]


def install(ram: Ram, plan: Plan) -> None:
    """Puts a running kernel into RAM."""

    def gpa(name: str) -> int:
        return plan.gpa(link(name))

    image = image_of(plan)
    ram.write(plan.text, image)
    direct = 0xFF11000000000000 if plan.la57 else 0xFFFF888000000000
    pud = plan.top_tables
    p4d = plan.top_tables + 0x1000
    task = plan.top_tables + 0x2000
    for gib in range(8):
        ram.word(pud + 8 * gib, gib << 30 | 0x1E3)  # 1 GiB pages
    top = gpa("init_top_pgt")
    kernel = gpa("level3_kernel_pgt") | 0x67
    if plan.la57:
        ram.word(p4d, pud | 0x67)
        ram.word(top + 8 * (direct >> 48 & 511), p4d | 0x67)
        ram.word(gpa("level4_kernel_pgt") + 8 * 511, kernel)
        kernel = gpa("level4_kernel_pgt") | 0x67
    else:
        ram.word(top + 8 * (direct >> 39 & 511), pud | 0x67)
    ram.word(top + 8 * 511, kernel)
    ram.word(gpa("level3_kernel_pgt") + 8 * 510, gpa("level2_kernel_pgt") | 0x63)
    ram.word(gpa("level3_kernel_pgt") + 8 * 511, gpa("level2_fixmap_pgt") | 0x67)
    first = (plan.va - START_KERNEL_MAP) >> 21
    for number in range(SIZE >> 21):
        ram.word(gpa("level2_kernel_pgt") + 8 * (first + number), (plan.text + (number << 21)) | 0x1E3)
    if plan.trampoline:
        ram.word(plan.trampoline + 8 * 511, kernel)
    ram.word(gpa("page_offset_base"), direct)
    ram.word(gpa("tk_core") + 8 + 16, plan.clock)
    init = gpa("init_task")
    init_va = link("init_task") + plan.shift
    ram.write(init + 24, b"swapper/0\0")
    ram.write(task + 24, b"init\0")
    ram.word(init + 8, direct + task + 8)
    ram.word(init + 16, direct + task + 8)
    ram.word(task + 8, init_va + 8)
    ram.word(task + 16, init_va + 8)


def image_of(plan: Plan) -> bytes:
    """The kernel image as linked (or, with a shift, as relocated), without what changes when it runs."""
    data = bytearray(SIZE)
    base = 0x100000

    def put(at: int, content: bytes) -> None:
        data[at : at + len(content)] = content

    put(base + SYMBOLS["linux_banner"], plan.banner.encode() + b"\0")
    note = struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID
    put(base + SYMBOLS["__start_notes"], note)
    if plan.kallsyms:
        put(0x200000, kallsyms_blob(symbols_of(plan), plan.layout, plan.va + 0x200000))
    if plan.btf:
        put(0x400000, kernel_btf().blob())
    return bytes(data)


def elf(image: bytes, *, va: int = LINK_TEXT, core: bool = False, paddr: int = 0) -> bytes:
    """A 64-bit x86 ELF file with one PT_LOAD, vmlinux or core."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        4 if core else 2,
        62,
        1,
        va,
        64,
        0,
        0,
        64,
        56,
        1,
        64,
        0,
        0,
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, va, paddr, len(image), len(image), 0x1000)
    return (header + load).ljust(0x1000, b"\0") + image
