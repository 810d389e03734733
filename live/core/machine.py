"""What an architecture is: page tables, the registers that matter, what an asid is.  A contract; no I/O here.

An implementation is one file in `live.arch` and one line in its table.  It is the only place that names
registers.  Whoever needs one says what it is for (`Architecture.argument`, `Architecture.asid`), never how it
is called.

Registers are a mapping from lower-case names to unsigned values, as a hypervisor hands them out
(`live.core.hypervisor.RegisterReader`, `live.core.traps.CodeHit.registers`).  A register that a source does
not know is absent; the methods here that need it raise `KeyError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from live.core.memory import Asid, GuestPhysical, MemoryReader
from live.core.traps import Abi

Registers = Mapping[str, int]
"""Values of a vCPU's registers by name, unsigned."""


class AddressSpace(Protocol):
    """One set of page tables over guest-physical memory.  Nothing is cached: a live guest changes them."""

    @property
    def root(self) -> int:
        """The gpa of the top-level table."""

    def gpa(self, address: int) -> GuestPhysical:
        """The gpa behind a guest-virtual address.  Raises `MemoryFault` if it is not mapped."""

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes from a guest-virtual address, across pages.  Raises `MemoryFault` at the first
        gap.
        """

    def read_until_fault(self, address: int, length: int) -> bytes:
        """Like `read`, but what is there up to the first page that is not mapped."""


class Architecture(Protocol):
    """One instruction-set architecture, as its kernels use it."""

    @property
    def name(self) -> str:
        """As `uname -m` has it: ``"x86_64"``."""

    @property
    def trap_registers(self) -> tuple[str, ...]:
        """The registers that a trap tells of beside its pc and asid, in our trap plugin's order."""

    @property
    def pc(self) -> str:
        """The name of the program counter."""

    @property
    def page_root(self) -> str:
        """The name of the register whose value names the page tables in force."""

    @property
    def longest_no_op(self) -> int:
        """Bytes of code that `no_op_length` needs to see."""

    def asid_of(self, root: int, *, split: bool = True) -> Asid:
        """The asid in a raw value of `page_root`: what tells one process from another, and nothing else.

        ``split``: a process may have two page tables, one for itself and one for the kernel, whose roots
        differ in one bit; without, that bit belongs to the address.
        """

    def roots(self, registers: Registers) -> frozenset[int]:
        """The gpas of the top-level page tables that a vCPU may be using; empty while paging is off."""

    def argument(self, registers: Registers, number: int) -> int:
        """The ``number``-th argument, from 0, of the function whose first instruction is next (the C ABI)."""

    def first_argument_somewhere(self, registers: Registers) -> Iterator[int]:
        """Values of the registers in which a function that has begun may keep its first argument."""

    def cpu_base(self, registers: Registers) -> int:
        """The guest-virtual base of the kernel's per-CPU data, for a vCPU that is in the kernel."""

    def cpu_base_in_user(self, registers: Registers) -> int:
        """The same for a vCPU that executes a user's program."""

    def call_argument(self, registers: Registers, abi: Abi, number: int) -> int:
        """The ``number``-th argument, from 0, of the system call that the next instruction makes."""

    def address_space(self, memory: MemoryReader, root: int, levels: int) -> AddressSpace:
        """The page tables whose top level is at gpa ``root``, ``levels`` deep."""

    def no_op_length(self, code: bytes) -> int:
        """Bytes of the no-op that ``code`` begins with, 0 if there is none: it need not be stepped over."""

    def behind_accesses(self, code: bytes, address: int, word: int) -> frozenset[int]:
        """Addresses behind the instructions of ``code`` whose operand is the word of data at ``word``.

        ``code`` begins at ``address``; all addresses are guest-virtual.
        """
