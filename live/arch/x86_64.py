"""x86-64: registers, page tables of 4 and 5 levels, asids, and the few instruction forms that matter here.

Sources: Intel SDM vol. 3A, 4.5 (paging) and 4.10.4.1 (PCID); vol. 2, 2.2.1.6 (RIP-relative operands); the
System V psABI, 3.2.3 (arguments); Linux, arch/x86/include/asm/processor-flags.h and arch/x86/mm/pti.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from live.core.errors import MemoryFault
from live.core.machine import AddressSpace, Registers
from live.core.memory import Asid, GuestPhysical, MemoryReader
from live.core.traps import Abi

PRESENT, LARGE = 1, 1 << 7
"""Bits of a page-table entry."""
FRAME = 0x000F_FFFF_FFFF_F000
"""The bits of a page-table entry that hold a gpa."""
SOFTWARE = 0x7FF << 52
"""Bits of an entry that points at a table which the processor ignores; Linux sets none of them."""

ASID_MASK = ~(0x1FFF | 1 << 63) & (1 << 64) - 1
"""The bits of CR3 that tell one process from another: bits 0-11 hold the PCID, bit 12 tells a user page table
from a kernel one under page-table isolation, bit 63 is the no-flush flag of a write."""
_PTI = 0x1000
_PAGING = 1 << 31
"""CR0.PG."""
_ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_CALL_ARGUMENTS: Mapping[Abi, Sequence[str]] = {
    Abi.NATIVE: ("rdi", "rsi", "rdx", "r10", "r8", "r9"),
    Abi.COMPAT: ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
}
"""arch/x86/entry/entry_64.S, entry_64_compat.S."""
_KEPT = ("rdi", "rbx", "rbp", "r12", "r13", "r14", "r15")
"""Where a function has its first argument: as it came, or in a register that outlives calls."""

_ENTRY = struct.Struct("<Q")
_NO_OPS = (
    (b"\xf3\x0f\x1e\xfa", 4),  # endbr64
    (b"\x0f\x1f\x44\x00\x00", 5),  # what ftrace makes of a call to __fentry__
    (b"\x66\x0f\x1f\x00", 4),  # what the kernel makes of endbr64 where it is not needed
    (b"\x0f\x1f\x40\xd6", 4),  # the same, with a mark (from 6.15)
    (b"\x90", 1),
)

_MODRM = 0xC7
_RIP_RELATIVE = 0x05
_DISPLACEMENT = struct.Struct("<i")
_BEFORE = 2  # opcode and ModRM
_IMMEDIATES = {
    **dict.fromkeys((0x6B, 0x80, 0x83, 0xBA, 0xC0, 0xC1, 0xC6), (1,)),
    **dict.fromkeys((0x69, 0x81, 0xC7), (4, 2)),
    0xF6: (0, 1),
    0xF7: (0, 4, 2),
}
"""Opcode -> bytes that may follow the displacement, where there are any; 2 with an operand-size prefix."""


class PageTable:
    """One address space: ``root`` is the gpa of its top-level table, ``levels`` 4 or 5.

    Walks the tables anew for every page: a live guest changes them at will.  A page that is not present may
    still hold its frame (PROT_NONE), but Linux inverts the frame bits of such entries (L1TF): absent.
    """

    __slots__ = ("_memory", "_shifts", "root")

    def __init__(self, memory: MemoryReader, root: int, levels: int) -> None:
        """Nothing is read until an address is translated."""
        self._memory = memory
        self.root = root
        self._shifts = (48, 39, 30, 21, 12) if levels == 5 else (39, 30, 21, 12)

    def gpa(self, address: int) -> GuestPhysical:
        """See `live.core.machine.AddressSpace.gpa`."""
        return GuestPhysical(self._page(address)[0])

    def read(self, address: int, length: int) -> bytes:
        """See `live.core.machine.AddressSpace.read`."""
        return b"".join(self._pieces(address, length))

    def read_until_fault(self, address: int, length: int) -> bytes:
        """See `live.core.machine.AddressSpace.read_until_fault`."""
        parts = []
        try:
            for part in self._pieces(address, length):
                parts.append(part)
        except MemoryFault:
            pass
        return b"".join(parts)

    def _pieces(self, address: int, length: int) -> Iterator[bytes]:
        while length > 0:
            gpa, left = self._page(address)
            take = min(left, length)
            yield bytes(self._memory.read(gpa, take))
            address += take
            length -= take

    def _page(self, address: int) -> tuple[int, int]:
        """(gpa of the address, bytes left in its page)."""
        table = self.root
        for shift in self._shifts:
            try:
                (entry,) = _ENTRY.unpack(self._memory.read(table + ((address >> shift) & 0x1FF) * 8, 8))
            except MemoryFault as fault:
                raise MemoryFault(address, "page table is not in guest RAM", "virtual") from fault
            if not entry & PRESENT:
                break
            if shift == 12 or (shift <= 30 and entry & LARGE):
                size = 1 << shift
                offset = address & (size - 1)
                return (entry & FRAME & ~(size - 1)) + offset, size - offset
            table = entry & FRAME
        raise MemoryFault(address, "page not present", "virtual")


class Architecture:
    """See `live.core.machine.Architecture`."""

    name = "x86_64"
    pc = "rip"
    page_root = "cr3"
    trap_registers = (
        *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
        *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "gs_base", "k_gs_base"),
    )
    longest_no_op = max(length for _, length in _NO_OPS)

    def asid_of(self, root: int, *, split: bool = True) -> Asid:
        """CR3 without PCID and no-flush bits; ``split``: and without that of PTI."""
        return Asid(root & (ASID_MASK if split else ASID_MASK | _PTI))

    def roots(self, registers: Registers) -> frozenset[int]:
        """CR3 as it is and with bit 12 cleared.

        With page-table isolation that bit tells the user's table from the kernel's; without, it may belong to
        the address.
        """
        if not registers.get("cr0", 0) & _PAGING:
            return frozenset()
        table = registers.get(self.page_root, 0) & FRAME
        return frozenset({table, table & ~0x1000})

    def argument(self, registers: Registers, number: int) -> int:
        """See `live.core.machine.Architecture.argument`; integers and pointers only."""
        return registers[_ARGUMENTS[number]]

    def first_argument_somewhere(self, registers: Registers) -> Iterator[int]:
        """See `live.core.machine.Architecture.first_argument_somewhere`."""
        return (registers.get(name, 0) for name in _KEPT)

    def cpu_base(self, registers: Registers) -> int:
        """GS.base, which the kernel swaps in when it is entered."""
        return registers.get("gs_base", 0)

    def cpu_base_in_user(self, registers: Registers) -> int:
        """What the kernel will swap in for GS.base."""
        return registers.get("k_gs_base", 0)

    def call_argument(self, registers: Registers, abi: Abi, number: int) -> int:
        """See `live.core.machine.Architecture.call_argument`; of 32-bit programs the lower halves count."""
        value = registers.get(_CALL_ARGUMENTS[abi][number], 0)
        return value & 0xFFFF_FFFF if abi is Abi.COMPAT else value

    def address_space(self, memory: MemoryReader, root: int, levels: int) -> AddressSpace:
        """See `live.core.machine.Architecture.address_space`; ``levels`` is 4 or 5."""
        return PageTable(memory, root, levels)

    def no_op_length(self, code: bytes) -> int:
        """See `live.core.machine.Architecture.no_op_length`: those that kernel functions begin with."""
        return next((length for pattern, length in _NO_OPS if code.startswith(pattern)), 0)

    def behind_accesses(self, code: bytes, address: int, word: int) -> frozenset[int]:
        """See `live.core.machine.Architecture.behind_accesses`: no disassembler, one form of operand.

        Kernel code reaches the kernel's data relative to its own address: an opcode, a ModRM byte with mod 0
        and r/m 5, a signed 32-bit displacement, perhaps an immediate.  The displacement counts from the end
        of the instruction, so it takes the opcode to know where it leads.  That what is no such operand hits
        one wanted word of 2**32 by chance does not happen.
        """
        found = set()
        for at in range(_BEFORE, len(code) - _DISPLACEMENT.size + 1):
            if code[at - 1] & _MODRM != _RIP_RELATIVE:
                continue
            (displacement,) = _DISPLACEMENT.unpack_from(code, at)
            for immediate in _IMMEDIATES.get(code[at - _BEFORE], (0,)):
                end = address + at + _DISPLACEMENT.size + immediate
                if end + displacement == word:
                    found.add(end)
        return frozenset(found)


X86_64 = Architecture()
