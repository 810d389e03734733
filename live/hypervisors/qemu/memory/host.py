"""A guest's memory, read from outside while it runs: mapped where it is shared, copied where it is not.

Theory of operation
-------------------
`live.hypervisors.qemu.memory.layout` says at which address of QEMU's process each range of guest RAM lies.

* `MappedMemory`: RAM is a shared mapping of a file or a memfd.  The same file is opened through QEMU's own
  descriptor (it may have been unlinked) and mapped into one stretch of address space that is as large as the
  guest-physical one, so that ``flat[gpa]`` needs no look-up.  The stretch is reserved by an anonymous
  read-only mapping without swap behind it; holes stay that mapping and read as zeros.
* `ProcessMemory`: RAM is private to QEMU.  /proc/PID/mem is read at the addresses found; a copy for each
  read.
* `live.hypervisors.qemu.memory.stub.StubMemory`, where the operating system allows neither.

Warts: a Python `mmap` object owns the stretch, so that it cannot be unmapped under a view that is still in
use; it goes with the last view.  Both readers hold a descriptor that pins the file or the process's address
space: a pid that is reused cannot be mistaken for the guest.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from live.core.errors import GuestGone, MemoryFault, NotPermitted, TargetError
from live.core.memory import PAGE_SIZE, Segment
from live.hypervisors.qemu.memory import layout
from live.hypervisors.qemu.monitor.client import Monitor

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000  # mmap.MAP_NORESERVE came with Python 3.11
_PROT_READ = 1
_MAX_SPACE = 1 << 46
"""Bytes of guest-physical space that are mapped flat; half of a process's address space."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSegment:
    """A range of guest RAM and where QEMU has it."""

    start: int
    length: int
    hva: int
    """Address in QEMU's process."""

    @property
    def end(self) -> int:
        """First gpa behind it."""
        return self.start + self.length


def locate(monitor: Monitor) -> list[HostSegment]:
    """Ask the monitor where guest RAM lies in QEMU's process.  Does not stop the guest.

    Raises `TargetError` when the answers do not fit together (a machine type that this does not know).
    """
    segments = []
    for one in ram(monitor):
        first = layout.parse_hva(monitor.hmp(f"gpa2hva {one.start:#x}"))
        last = layout.parse_hva(monitor.hmp(f"gpa2hva {one.start + one.length - 1:#x}"))
        if first is None or last is None or last - first != one.length - 1:
            raise TargetError(
                f"QEMU does not have the guest's RAM at {one.start:#x} in one piece; report it."
            )
        segments.append(HostSegment(start=one.start, length=one.length, hva=first))
    return segments


def ram(monitor: Monitor) -> list[Segment]:
    """Ask the monitor which guest-physical addresses are RAM.  Does not stop the guest.

    Raises `TargetError` if there is none.
    """
    ranges = layout.main_memory(
        layout.parse_flat_view(monitor.hmp("info mtree -f")),
        layout.parse_backends(monitor.hmp("info memdev")),
    )
    segments = [Segment(start=one.start, length=one.length) for one in ranges if one.length >= PAGE_SIZE]
    if not segments:
        raise TargetError("QEMU reports no guest RAM (info mtree -f); is this a system emulator for x86-64?")
    return segments


class Segments:
    """The part that all readers share: which gpa is RAM."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        """``segments``: ascending, not overlapping; at least one."""
        self.segments = tuple(segments)
        self._starts = [one.start for one in segments]

    def find(self, gpa: int, length: int) -> int:
        """Number of the segment that holds all of ``length`` bytes.

        Raises `MemoryFault` with the first that is not in RAM.
        """
        index = bisect.bisect_right(self._starts, gpa) - 1
        one = self.segments[max(index, 0)]
        if index < 0 or gpa >= one.end:
            raise MemoryFault(gpa)
        if gpa + length > one.end:
            raise MemoryFault(one.end)
        return index


class _HostSegments(Segments):
    """The part that both readers of QEMU's process share: where it has guest RAM."""

    def __init__(self, segments: Sequence[HostSegment]) -> None:
        super().__init__([Segment(start=one.start, length=one.length) for one in segments])
        self.host_segments = tuple(segments)

    def hva(self, gpa: int, length: int = 1) -> int:
        """Address in QEMU's process of guest RAM.  Raises `MemoryFault`."""
        one = self.host_segments[self.find(gpa, length)]
        return one.hva + gpa - one.start


class MappedMemory(_HostSegments):
    """Guest RAM mapped from its backing file; every read is a view, without a copy."""

    def __init__(
        self, segments: Sequence[HostSegment], files: Sequence[tuple[int, int]], description: str
    ) -> None:
        """``files``: (descriptor, offset in it) of each segment; the descriptors stay the caller's.

        Raises `OSError` when a file cannot be mapped.
        """
        super().__init__(segments)
        self.description = description
        size = segments[-1].end
        if size > _MAX_SPACE:
            raise OSError(f"guest-physical space of {size:#x} bytes is too large")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._space: mmap.mmap | None = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ)
        view = memoryview(self._space)
        try:
            base = _address_of(view)
            for one, (descriptor, offset) in zip(segments, files, strict=True):
                _map_fixed(base + one.start, one.length, descriptor, offset)
        except OSError:
            view.release()
            self._space.close()
            raise
        self.flat: memoryview | None = view.toreadonly()
        view.release()
        self._files = [(os.dup(descriptor), offset) for descriptor, offset in files]

    def read(self, gpa: int, length: int) -> memoryview:
        """See `live.core.memory.MemoryReader.read`: a view that shows what the guest writes later."""
        flat = self.flat
        if flat is None:
            raise GuestGone("The guest's memory was closed; attach to the guest again.")
        self.find(gpa, length)
        return flat[gpa : gpa + length]

    def populated(self) -> tuple[Segment, ...]:
        """The parts of RAM that were ever touched, ascending; the rest holds zeros.

        A scan should look at these only: merely reading the rest would allocate its pages on the host.
        """
        found: list[Segment] = []
        for one, (descriptor, offset) in zip(self.host_segments, self._files, strict=False):
            found += _data_ranges(one, descriptor, offset)
        return tuple(found)

    def close(self) -> None:
        """Unmap, once no view of the memory is in use any more.  Safe to call twice."""
        while self._files:
            os.close(self._files.pop()[0])
        space, self._space = self._space, None
        flat, self.flat = self.flat, None
        with contextlib.suppress(BufferError):
            if flat is not None:
                flat.release()
            if space is not None:
                space.close()


class ProcessMemory(_HostSegments):
    """Guest RAM read through /proc/PID/mem: works with any QEMU that is already running."""

    flat: memoryview | None = None

    def __init__(self, segments: Sequence[HostSegment], pid: int, description: str) -> None:
        """Raises `NotPermitted` without the right to trace QEMU, `GuestGone`."""
        super().__init__(segments)
        self.description = description
        try:
            self._descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise GuestGone(f"The QEMU process {pid} has ended; start the guest again.") from None
        except OSError as error:
            raise NotPermitted(
                f"The memory of QEMU (pid {pid}) may not be read ({error.strerror}); run as root, or with "
                "CAP_SYS_PTRACE."
            ) from None

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`."""
        position = self.hva(gpa, length)
        if self._descriptor < 0:
            raise GuestGone("The guest's memory was closed; attach to the guest again.")
        data = b""
        while len(data) < length:
            try:
                chunk = os.pread(self._descriptor, length - len(data), position + len(data))
            except OSError:
                raise MemoryFault(gpa + len(data), "QEMU's memory cannot be read there") from None
            if not chunk:  # the address space is gone, and with it the process
                raise GuestGone("QEMU has ended while its guest's memory was read; start the guest again.")
            data = data + chunk if data else chunk
        return data

    def populated(self) -> tuple[Segment, ...]:
        """All of RAM; which parts were touched is not known."""
        return self.segments

    def close(self) -> None:
        """Let go of the process's address space.  Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_memory(monitor: Monitor, pid: int, *, allow_mapping: bool = True) -> MappedMemory | ProcessMemory:
    """The best reader for the guest of process ``pid``; its ``description`` says which it is and why.

    Raises `NotPermitted`, `GuestGone`, `TargetError`.
    """
    segments = locate(monitor)
    reason = "RAM is private to QEMU"
    if allow_mapping:
        with contextlib.ExitStack() as stack:
            found = _backing_files(segments, pid, stack)
            if found is not None:
                files, what = found
                try:
                    return MappedMemory(segments, files, f"mapped from {what}, no copies")
                except OSError as error:
                    reason = f"{what} cannot be mapped: {error.strerror or error}"
    return ProcessMemory(segments, pid, f"copied from QEMU's process through /proc/{pid}/mem ({reason})")


def _backing_files(
    segments: Sequence[HostSegment], pid: int, stack: contextlib.ExitStack
) -> tuple[list[tuple[int, int]], str] | None:
    """(descriptor, offset) for each segment if all of them are shared mappings of files, and their name."""
    try:
        mappings = layout.parse_maps(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        raise GuestGone(f"The QEMU process {pid} has ended; start the guest again.") from None
    except PermissionError:
        raise NotPermitted(
            f"QEMU (pid {pid}) belongs to another user; run as that user, or as root."
        ) from None
    opened: dict[tuple[str, int], int] = {}
    files = []
    names = []
    for one in segments:
        mapping = layout.mapping_at(mappings, one.hva)
        if mapping is None or not mapping.shared or one.hva + one.length > mapping.end:
            return None
        key = (mapping.device, mapping.inode)
        if key not in opened:
            descriptor = _open_backing(mapping, pid)
            if descriptor is None:
                return None
            stack.callback(os.close, descriptor)
            opened[key] = descriptor
            names.append(mapping.path.removesuffix(" (deleted)"))
        files.append((opened[key], mapping.offset + one.hva - mapping.start))
    return files, "shared memory " + ", ".join(names)


def _open_backing(mapping: layout.HostMapping, pid: int) -> int | None:
    """Open the file behind a mapping of another process, unlinked or not; None where we may not."""
    candidates = [f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"]
    with contextlib.suppress(OSError):
        candidates += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    if mapping.path.startswith("/"):
        candidates.append(mapping.path)
    for path in candidates:
        try:
            found = os.stat(path)
            if found.st_ino != mapping.inode or not stat.S_ISREG(found.st_mode):
                continue
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return None


def _data_ranges(segment: HostSegment, descriptor: int, offset: int) -> list[Segment]:
    """Runs of a segment that its file has data for (lseek(2), SEEK_DATA)."""
    found = []
    position, end = offset, offset + segment.length
    while position < end:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
            hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind `position`
                break
            return [Segment(start=segment.start, length=segment.length)]
        if data < hole:
            found.append(Segment(start=segment.start + data - offset, length=hole - data))
        position = max(hole, position + 1)
    return found


class _Buffer(ctypes.Structure):
    """``Py_buffer`` of the C API, as far as its first member; the rest is room."""

    _fields_ = (("buf", ctypes.c_void_p), ("rest", ctypes.c_byte * 256))


def _address_of(view: memoryview) -> int:
    """Where a read-only buffer lies; `ctypes.c_char.from_buffer` takes writable ones only."""
    buffer = _Buffer()
    api = ctypes.pythonapi
    if api.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0) != 0:
        raise OSError("the mapping has no address")
    address = int(buffer.buf or 0)
    api.PyBuffer_Release(ctypes.byref(buffer))
    return address


def _map_fixed(address: int, length: int, descriptor: int, offset: int) -> None:
    """Map a file over reserved address space, shared and read-only.  Raises `OSError`."""
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
    flags = mmap.MAP_SHARED | _MAP_FIXED
    got = libc.mmap(address, length, _PROT_READ, flags, descriptor, offset)
    if got != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
