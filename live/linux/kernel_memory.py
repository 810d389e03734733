"""The kernel's own address space, translated by subtraction where possible, else by a page walk.

The kernel maps all RAM linearly (the direct map, at `page_offset_base`) and its image a second time
at `__START_KERNEL_map`.  Nearly every object that introspection reads lies in one of the two, where
one subtraction replaces the page walk, with 4 and 5 levels alike.  Everything else (vmalloc,
modules) goes through the page tables.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from live.core.errors import MemoryFault
from live.core.machine import AddressSpace
from live.core.memory import MemoryReader
from live.linux.layout import Record

_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_MAX_STRING = 4096


class KernelMemory:
    """Kernel-virtual memory over guest-physical memory.

    ``image``: first and last+1 run-time virtual address of the image mapping.  ``phys_base``: gpa of the
    first (may be negative).  ``direct``: virtual address of the direct map, `page_offset_base`.  ``table``:
    the kernel's page tables.
    """

    def __init__(
        self,
        memory: MemoryReader,
        *,
        phys_base: int,
        image: tuple[int, int],
        direct: int,
        table: AddressSpace,
    ) -> None:
        """Nothing is read yet."""
        self.physical = memory
        self.refresh = memory.refresh
        self.direct = direct
        self.limit = memory.segments[-1].end if memory.segments else 0
        self.table = table
        self._image, self._image_length = image[0], image[1] - image[0]
        self._image_gpa = phys_base
        # With a negative phys_base the first bytes of the mapping have no gpa.
        self._image_first = max(0, -self._image_gpa)

    def gpa(self, address: int) -> int:
        """The gpa of a kernel-virtual address.  Raises `MemoryFault` if it is not mapped."""
        offset = address - self.direct
        if 0 <= offset < self.limit:
            return offset
        offset = address - self._image
        if self._image_first <= offset < self._image_length:
            return offset + self._image_gpa
        return self.table.gpa(address)

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at a kernel-virtual address.  Raises `MemoryFault` if any cannot be read."""
        offset = address - self.direct
        if 0 <= offset < self.limit:
            return bytes(self.physical.read(offset, length))
        offset = address - self._image
        if self._image_first <= offset < self._image_length:
            return bytes(self.physical.read(offset + self._image_gpa, length))
        return self.table.read(address, length)

    def u32(self, address: int) -> int:
        """The u32 at a kernel-virtual address.  Raises `MemoryFault`."""
        value: int = _U32.unpack(self.read(address, 4))[0]
        return value

    def u64(self, address: int) -> int:
        """The u64, or pointer, at a kernel-virtual address.  Raises `MemoryFault`."""
        value: int = _U64.unpack(self.read(address, 8))[0]
        return value

    def string(self, address: int, limit: int = _MAX_STRING) -> bytes:
        """The C string at a kernel-virtual address, without its NUL, at most ``limit`` bytes.

        It is read page by page, so that it may end before an unmapped page.  Raises `MemoryFault`.
        """
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
        """A function from the kernel-virtual address of a C object to the values of ``record``.

        The values are in the order of the record's fields.  The function raises `MemoryFault`.
        """
        read, arrange = self.raw_unpacker(record), record.arranger()
        if not record.needs_arranging:
            return read
        return lambda address: arrange(read(address))

    def raw_unpacker(self, record: Record) -> Callable[[int], tuple[Any, ...]]:
        """Like `unpacker`, but the values are in memory order: see `Record.arranger`.

        This is the hot path: with a flat view it is one subtraction and one unpack.
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
        """A function that reads the number at a fixed kernel-virtual address, in `struct` format ``form``.

        The address is translated here, once.  Raises `MemoryFault` if it is not mapped to RAM.
        """
        gpa, record = self.gpa(address), struct.Struct(f"<{form}")
        flat, read = self.physical.flat, self.physical.read
        if flat is None:
            return lambda: int(record.unpack(read(gpa, record.size))[0])
        if gpa + record.size > len(flat):
            raise MemoryFault(gpa)
        unpack_from, view = record.unpack_from, flat
        return lambda: unpack_from(view, gpa)[0]
