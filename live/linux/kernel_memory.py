"""The kernel's own address space, translated without page walks wherever that is possible.

The kernel maps all RAM linearly (the direct map, at `page_offset_base`) and its image once more
at `__START_KERNEL_map`.  Nearly every object that introspection touches lies in one of the two, so
one subtraction takes the place of a page walk, for 4 and 5 levels alike.  Everything else
(vmalloc, modules) goes through the page table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from live.arch.x86_64 import PageTable
from live.core.errors import MemoryFault
from live.core.memory import MemoryReader
from live.linux.layout import Record

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_MAX_STRING = 4096


def _nothing() -> None:
    """What most memory does when asked to refresh."""


def _none() -> float:
    """What most memory costs the guest."""
    return 0.0


class KernelMemory:
    """Kernel-virtual memory.

    ``phys_base``: gpa of `__START_KERNEL_map`, so that an address of the image translates by
    subtraction; ``image``: first and last+1 virtual address of the image, KASLR shift included;
    ``direct``: `page_offset_base`; ``table``: the kernel's page table.
    """

    def __init__(
        self, memory: MemoryReader, *, phys_base: int, image: tuple[int, int], direct: int, table: PageTable
    ) -> None:
        """Nothing is read yet."""
        self.physical = memory
        # A recording keeps one version of a page for all reads between two refreshes; memory that
        # is read in place has nothing to do here.
        self.refresh: Callable[[], None] = getattr(memory, "refresh", _nothing)
        self.rest: Callable[[], float] = getattr(memory, "rest", _none)
        self.direct = direct
        self.limit = memory.segments[-1].end if memory.segments else 0
        self.table = table
        self._image, self._image_length = image[0], image[1] - image[0]
        self._image_gpa = image[0] - START_KERNEL_MAP + phys_base
        # Of a shifted kernel the first part of this has no gpa.
        self._image_first = max(0, -self._image_gpa)

    def gpa(self, address: int) -> int:
        """The gpa behind a kernel-virtual address; `MemoryFault` if there is none."""
        offset = address - self.direct
        if 0 <= offset < self.limit:
            return offset
        offset = address - self._image
        if self._image_first <= offset < self._image_length:
            return offset + self._image_gpa
        return self.table.gpa(address)

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes; `MemoryFault` if any of them cannot be read."""
        offset = address - self.direct
        if 0 <= offset < self.limit:
            return bytes(self.physical.read(offset, length))
        offset = address - self._image
        if self._image_first <= offset < self._image_length:
            return bytes(self.physical.read(offset + self._image_gpa, length))
        return self.table.read(address, length)

    def u32(self, address: int) -> int:
        """An unsigned 32-bit number."""
        value: int = _U32.unpack(self.read(address, 4))[0]
        return value

    def u64(self, address: int) -> int:
        """An unsigned 64-bit number, or a pointer."""
        value: int = _U64.unpack(self.read(address, 8))[0]
        return value

    def string(self, address: int, limit: int = _MAX_STRING) -> bytes:
        """The bytes of a C string, without its NUL; at most ``limit``, read page by page."""
        parts: list[bytes] = []
        while limit > 0:
            take = min(limit, 4096 - (address & 0xFFF))
            part = self.read(address, take)
            end = part.find(b"\0")
            if end >= 0:
                parts.append(part[:end])
                break
            parts.append(part)
            address += take
            limit -= take
        return b"".join(parts)

    def unpacker(self, record: Record) -> Callable[[int], tuple[Any, ...]]:
        """A function from the address of a C object to the values of ``record``, as asked for.

        The function raises `MemoryFault` for an address that is not in guest RAM.
        """
        read, arrange = self.raw_unpacker(record), record.arranger()
        if not record.needs_arranging:
            return read
        return lambda address: arrange(read(address))

    def raw_unpacker(self, record: Record) -> Callable[[int], tuple[Any, ...]]:
        """Like `unpacker`, but the values are as they lie in memory: see `Record.arranger`.

        It is the hot path of everything: with a flat view it is a subtraction and an unpack.
        """
        base, size = self.direct - record.start, record.struct.size
        first, last = record.start, self.limit - size
        gpa_of, start = self.gpa, record.start
        flat = self.physical.flat

        if flat is not None:
            unpack_from, view = record.struct.unpack_from, flat

            def in_place(address: int) -> tuple[Any, ...]:
                offset = address - base
                if first <= offset <= last:
                    return unpack_from(view, offset)
                offset = gpa_of(address) + start
                if not 0 <= offset <= last:
                    raise MemoryFault(offset)
                return unpack_from(view, offset)

            return in_place

        unpack, read = record.struct.unpack, self.physical.read

        def copied(address: int) -> tuple[Any, ...]:
            offset = address - base
            if not first <= offset <= last:
                offset = gpa_of(address) + start
            return unpack(read(offset, size))

        return copied

    def value(self, address: int, form: str) -> Callable[[], int]:
        """A function that reads the number at one fixed address, in the `struct` format ``form``.

        Raises `MemoryFault` now if the address has no place in guest memory.
        """
        gpa, record = self.gpa(address), struct.Struct(f"<{form}")
        flat, read = self.physical.flat, self.physical.read
        if flat is None:
            return lambda: int(record.unpack(read(gpa, record.size))[0])
        if gpa + record.size > len(flat):
            raise MemoryFault(gpa)
        unpack_from, view = record.unpack_from, flat
        return lambda: unpack_from(view, gpa)[0]
