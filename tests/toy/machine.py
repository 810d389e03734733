"""A toy architecture: two argument registers, and page tables of one entry."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from live.core.errors import MemoryFault
from live.core.machine import AddressSpace, Registers
from live.core.memory import Asid, GuestPhysical, MemoryReader
from live.core.traps import Abi

ENTRY = struct.Struct("<QQ")
"""All of a page table: (gpa at which its address space lies, bytes of it)."""


class ToySpace:
    """A `live.core.machine.AddressSpace`: one run of memory, from address 0."""

    def __init__(self, memory: MemoryReader, root: int) -> None:
        self._memory, self.root = memory, root

    def gpa(self, address: int) -> GuestPhysical:
        return GuestPhysical(self._run(address)[0])

    def read(self, address: int, length: int) -> bytes:
        gpa, left = self._run(address)
        if length > left:
            raise MemoryFault(address + left, "not mapped", "virtual")
        return bytes(self._memory.read(gpa, length))

    def read_until_fault(self, address: int, length: int) -> bytes:
        try:
            gpa, left = self._run(address)
            return bytes(self._memory.read(gpa, min(length, left)))
        except MemoryFault:
            return b""

    def _run(self, address: int) -> tuple[int, int]:
        base, size = ENTRY.unpack(self._memory.read(self.root, ENTRY.size))
        if not 0 <= address < size:
            raise MemoryFault(address, "not mapped", "virtual")
        return base + address, size - address


class ToyArchitecture:
    """A `live.core.machine.Architecture`."""

    name = "toy"
    pc = "pc"
    page_root = "table"
    trap_registers = ("a0", "a1")
    longest_no_op = 1

    def asid_of(self, root: int, *, split: bool = True) -> Asid:
        return Asid(root & ~0xF)  # a toy's kernel and its processes have one page table

    def roots(self, registers: Registers) -> frozenset[int]:
        return frozenset({registers[self.page_root] & ~0xF})

    def argument(self, registers: Registers, number: int) -> int:
        return registers[f"a{number}"]

    def first_argument_somewhere(self, registers: Registers) -> Iterator[int]:
        return iter([registers["a0"]])

    def cpu_base(self, registers: Registers) -> int:
        return 0

    def cpu_base_in_user(self, registers: Registers) -> int:
        return 0

    def call_argument(self, registers: Registers, abi: Abi, number: int) -> int:
        return registers[f"a{number}"]

    def address_space(self, memory: MemoryReader, root: int, levels: int) -> AddressSpace:
        return ToySpace(memory, root)

    def no_op_length(self, code: bytes) -> int:
        return int(code.startswith(b"\0"))

    def behind_accesses(self, code: bytes, address: int, word: int) -> frozenset[int]:
        return frozenset()


TOY = ToyArchitecture()
