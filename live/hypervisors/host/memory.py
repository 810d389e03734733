"""A guest's memory, read from outside while it runs: mapped where it is shared, copied where it is not.

Theory of operation
-------------------
An adapter says at which address of the hypervisor's process each run of guest RAM lies.

* `MappedMemory`: RAM is a shared mapping of a file or a memfd.  The same file is opened through the process's
  own descriptor (it may have been unlinked) and mapped into one stretch of address space that is as large as
  the guest-physical one, so that ``flat[gpa]`` needs no look-up (`live.hypervisors.host.space`).
* `ProcessMemory`: RAM is private to the process.  /proc/PID/mem is read at the addresses found; a copy for
  each read.

Both hold a descriptor that pins the file or the process's address space: a pid that is reused, or a process
that executes another program, cannot be mistaken for the guest.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Sequence

from live.core.errors import GuestGone, MemoryFault, NotPermitted
from live.core.memory import InPlace, Segment
from live.hypervisors.host.maps import HostMapping, open_backing, read_maps, shared_file_at
from live.hypervisors.host.segments import HostRun, HostSegments
from live.hypervisors.host.space import Space, data_ranges

_CLOSED = "The guest's memory was closed; attach to the guest again."


class MappedMemory(HostSegments, InPlace):
    """Guest RAM mapped from its backing file; every read is a view, without a copy."""

    def __init__(self, runs: Sequence[HostRun], files: Sequence[tuple[int, int]], description: str) -> None:
        """``files``: (descriptor, offset in it) of each run; the descriptors stay the caller's.

        Raises `OSError` when a file cannot be mapped.
        """
        super().__init__(runs)
        self.description = description
        space = Space(runs[-1].end, max(os.fstat(descriptor).st_blksize for descriptor, _ in files))
        try:
            for one, (descriptor, offset) in zip(runs, files, strict=True):
                space.map(one.start, one.length, descriptor, offset)
        except OSError:
            space.close()
            raise
        self._space = space
        self.flat: memoryview | None = space.view
        self._files = [(os.dup(descriptor), offset) for descriptor, offset in files]

    def read(self, gpa: int, length: int) -> memoryview:
        """See `live.core.memory.MemoryReader.read`: a view that shows what the guest writes later."""
        flat = self.flat
        if flat is None:
            raise GuestGone(_CLOSED)
        self.find(gpa, length)
        return flat[gpa : gpa + length]

    def populated(self) -> tuple[Segment, ...]:
        """The parts of RAM that were ever touched, ascending; the rest holds zeros.

        A scan should look at these only: merely reading the rest would allocate its pages on the host.
        """
        return tuple(
            Segment(start=one.start + data - offset, length=length)
            for one, (descriptor, offset) in zip(self.runs, self._files, strict=False)
            for data, length in data_ranges(descriptor, offset, one.length)
        )

    def laid_out(self, runs: Sequence[HostRun]) -> MappedMemory:
        """The same RAM at other gpas; the caller closes it.  Each of ``runs`` lies in one of ours.

        Raises `OSError` when it cannot be mapped so, `GuestGone` if this reader is closed.
        """
        files = []
        for run in runs:
            for one, (descriptor, offset) in zip(self.runs, self._files, strict=False):
                if one.hva <= run.hva < one.hva + one.length:
                    files.append((descriptor, offset + run.hva - one.hva))
                    break
            else:
                raise GuestGone(_CLOSED)
        return MappedMemory(runs, files, self.description)

    def close(self) -> None:
        """Unmap, once no view of the memory is in use any more.  Safe to call twice."""
        while self._files:
            os.close(self._files.pop()[0])
        self.flat = None
        self._space.close()


class ProcessMemory(HostSegments, InPlace):
    """Guest RAM read through /proc/PID/mem: works with any process that has it."""

    flat: memoryview | None = None

    def __init__(self, runs: Sequence[HostRun], descriptor: int, description: str) -> None:
        """``descriptor``: of /proc/PID/mem; it stays the caller's."""
        super().__init__(runs)
        self.description = description
        self._descriptor = os.dup(descriptor)

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`."""
        one = self.runs[max(bisect.bisect_right(self._run_starts, gpa) - 1, 0)]
        if one.start <= gpa and gpa + length <= one.end:
            return self._copy(one.hva + gpa - one.start, length, gpa)
        parts, at = [], gpa
        for hva, take in self.pieces(gpa, length):
            parts.append(self._copy(hva, take, at))
            at += take
        return b"".join(parts)

    def _copy(self, hva: int, length: int, gpa: int) -> bytes:
        if self._descriptor < 0:
            raise GuestGone(_CLOSED)
        data = b""
        while len(data) < length:
            try:
                chunk = os.pread(self._descriptor, length - len(data), hva + len(data))
            except OSError:
                raise MemoryFault(gpa + len(data), "its hypervisor has no memory there") from None
            if not chunk:  # the address space is gone: the process has ended, or executed another program
                raise GuestGone(
                    "The process that runs the guest ended while the guest's memory was read; start the "
                    "guest again."
                )
            data = data + chunk if data else chunk
        return data

    def laid_out(self, runs: Sequence[HostRun]) -> ProcessMemory:
        """The same RAM at other gpas; the caller closes it.  Raises `GuestGone` if this reader is closed."""
        if self._descriptor < 0:
            raise GuestGone(_CLOSED)
        return ProcessMemory(runs, self._descriptor, self.description)

    def close(self) -> None:
        """Let go of the process's address space.  Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


HostMemory = MappedMemory | ProcessMemory


def open_memory(
    runs: Sequence[HostRun],
    pid: int,
    *,
    mappings: Sequence[HostMapping] | None = None,
    allow_mapping: bool = True,
) -> HostMemory:
    """The best reader for RAM that process ``pid`` has; its ``description`` says which it is and why.

    ``runs``: ascending by gpa.  ``mappings``: those of the process, if they are known.
    ``allow_mapping=False`` copies even where RAM could be mapped (for comparing).  Raises `NotPermitted`,
    `GuestGone`.
    """
    reason = "RAM is private to the process"
    if allow_mapping:
        with contextlib.ExitStack() as stack:
            found = _backing_files(runs, pid, mappings or read_maps(pid), stack)
            if isinstance(found, str):
                reason = found
            else:
                files, what = found
                try:
                    return MappedMemory(runs, files, f"mapped from {what}, no copies")
                except OSError as error:
                    reason = f"{what} cannot be mapped: {error.strerror or error}"
    descriptor = open_mem(pid)
    try:
        return ProcessMemory(runs, descriptor, f"copied through /proc/{pid}/mem ({reason})")
    finally:
        os.close(descriptor)


def open_mem(pid: int) -> int:
    """A descriptor of /proc/PID/mem, which the caller closes.

    It stays that of the address space which the process has now: read when the process has ended, or executes
    another program, it is at its end.  Raises `NotPermitted` without the right to trace the process,
    `GuestGone`.
    """
    try:
        return os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise GuestGone(f"The process {pid} has ended; start the guest again.") from None
    except OSError as error:
        raise NotPermitted(
            f"The memory of process {pid} may not be read ({error.strerror}); run as root, or with "
            "CAP_SYS_PTRACE."
        ) from None


def _backing_files(
    runs: Sequence[HostRun], pid: int, mappings: Sequence[HostMapping], stack: contextlib.ExitStack
) -> tuple[list[tuple[int, int]], str] | str:
    """(descriptor, offset) for each run and the files' names, or why RAM cannot be mapped.

    The descriptors are closed with ``stack``.
    """
    opened: dict[tuple[str, int], int] = {}
    files = []
    names = []
    for one in runs:
        mapping = shared_file_at(mappings, one.hva, one.length)
        if mapping is None:
            return "RAM is private to the process"
        name = mapping.path.removesuffix(" (deleted)")
        key = (mapping.device, mapping.inode)
        if key not in opened:
            descriptor = open_backing(mapping, pid)
            if descriptor is None:
                return f"shared memory {name} may not be opened"
            stack.callback(os.close, descriptor)
            opened[key] = descriptor
            names.append(name)
        files.append((opened[key], mapping.offset + one.hva - mapping.start))
    return files, "shared memory " + ", ".join(names)
