"""A stretch of our own address space in which files are mapped side by side, as one read-only view.

The stretch is reserved by an anonymous read-only mapping without swap behind it; what no file is mapped over
stays that mapping and reads as zeros.

Warts: a Python `mmap` object owns the stretch, so that it cannot be unmapped under a view that is still in
use; it goes with the last view.  A file that is cut short while it is mapped ends us with SIGBUS, like every
process that maps it: `Space.map` refuses one that is too short already.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE came with Python 3.11
_MAX_SPACE = 1 << 46
"""Bytes that are mapped flat; half of a process's address space."""
_MAX_ALIGNMENT = 1 << 30
_MAX_SEEKS = 1 << 16


class Space:
    """``view``: the whole stretch, read-only."""

    def __init__(self, size: int, alignment: int = mmap.PAGESIZE) -> None:
        """``alignment``: of the stretch in bytes; files on huge pages need theirs.  Raises `OSError`."""
        if size > _MAX_SPACE:
            raise OSError(errno.ENOMEM, f"guest-physical space of {size:#x} bytes is too large")
        if not mmap.PAGESIZE <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            alignment = mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._mmap = mmap.mmap(-1, size + alignment - mmap.PAGESIZE, flags=flags, prot=mmap.PROT_READ)
        with memoryview(self._mmap) as whole:
            base = address_of(whole)
            skip = -base % alignment
            self._base = base + skip
            self.view = whole[skip : skip + size].toreadonly()

    def map(self, at: int, length: int, descriptor: int, offset: int) -> None:
        """Map ``length`` bytes of a file from ``offset`` on, shared, at ``at`` of the stretch.

        Raises `OSError`.
        """
        if os.fstat(descriptor).st_size < offset + length:
            raise OSError(errno.EINVAL, "the file is shorter than what is mapped of it")
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
        )
        address = self._base + at
        flags = mmap.MAP_SHARED | _MAP_FIXED
        if libc.mmap(address, length, mmap.PROT_READ, flags, descriptor, offset) != address:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Unmap, once no view is in use any more.  Safe to call twice."""
        with contextlib.suppress(BufferError):
            self.view.release()
            self._mmap.close()


class _Buffer(ctypes.Structure):
    """``Py_buffer`` of the C API, as far as its first member; the rest is room."""

    _fields_ = (("buf", ctypes.c_void_p), ("rest", ctypes.c_byte * 256))


def address_of(view: memoryview) -> int:
    """Where a read-only buffer lies; `ctypes.c_char.from_buffer` takes writable ones only."""
    buffer = _Buffer()
    api = ctypes.pythonapi
    if api.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0) != 0:
        raise OSError("the mapping has no address")
    address = int(buffer.buf or 0)
    api.PyBuffer_Release(ctypes.byref(buffer))
    return address


def data_ranges(descriptor: int, offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, bytes) of the parts of a file that hold data, ascending (lseek(2), SEEK_DATA).

    All of it where the file system cannot tell, and the rest of it behind very many parts.
    """
    found: list[tuple[int, int]] = []
    position, end = offset, offset + length
    for _ in range(_MAX_SEEKS):
        if position >= end:
            return found
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
            hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind `position`
                return found
            return [(offset, length)]
        if data < hole:
            found.append((data, hole - data))
        position = max(hole, position + 1)
    return [*found, (position, end - position)]
