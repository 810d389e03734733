"""Which mappings of a process are guest RAM.  Pure: works on what /proc/PID/maps says.

Theory of operation
-------------------
Guest RAM is the largest thing that a VMM maps readable and writable, and never executable: a file or memfd
(shared, or private as after restoring a snapshot), or anonymous memory.

* A file may be mapped in pieces: the parts below and above the PCI hole, or parts that madvise(2), mbind(2)
  and mprotect(2) treat differently.  They are put in the order in which they lie in the file.
* Several memfds of one name are the RAM of several NUMA nodes or of several regions (QEMU's
  memory-backend-memfd, cloud-hypervisor's ``ch_ram``).  Their inodes count up in the order in which they were
  made, and VMMs make them in the order in which they lie in the guest.
* Anonymous mappings that touch are pieces of one thing, or neighbours by chance: mmap(2) puts what is mapped
  next right below.  RAM is a whole number of MiB, so the longest stretch of pieces that is one counts.

Not RAM, however large: a device's memory, the files of a JIT (mapped executable elsewhere in the process),
heap and stack.

Warts: RAM in several anonymous mappings that do not touch, or in files of different names, is not put
together; the largest is taken, and `Ram.notes` says so.  A neighbour that is a whole number of MiB itself (a
thread's stack), or that the kernel has merged with RAM into one mapping, counts as RAM.  It lies before it;
whoever places RAM finds that out (`symbols.ram_file`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from live.hypervisors.host.maps import HostMapping, follows
from live.hypervisors.host.segments import HostRun

LEAST = 32 << 20
"""Bytes that a guest has at least."""
_MIB = 1 << 20
_RIVAL = 4
"""What is a quarter as large as the RAM that was found may be RAM, too."""
_MEMORY_DEVICES = ("/dev/zero", "/dev/shm/", "/dev/hugepages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """Guest RAM in a process, one piece behind the other: ``start`` of each is the bytes before it."""

    pieces: tuple[HostRun, ...]
    notes: tuple[str, ...]
    """What the user should know of the choice, a sentence each."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pieces[-1].end


def find_ram(mappings: Sequence[HostMapping]) -> Ram | None:
    """Guest RAM among the mappings (ascending) of a process; None if nothing is large enough to be it."""
    found = sorted(_candidates(mappings), key=_size, reverse=True)
    if not found or _size(found[0]) < LEAST:
        return None
    notes = []
    best, rivals = found[0], found[1:]
    twins = [one for one in found if _same_memfd(one[0], best[0])]
    if len(twins) > 1:
        twins.sort(key=lambda one: one[0].inode)
        best = [piece for one in twins for piece in one]
        rivals = [one for one in found if one not in twins]
        notes.append(
            f"the guest's RAM is in {len(twins)} memory files, taken to lie in the order in which they were "
            "made"
        )
    near = [one for one in rivals if _size(one) >= max(LEAST, _size(best) // _RIVAL)]
    if near:
        notes.append(
            f"the process has {len(near)} more mappings that may be RAM of the guest, of "
            f"{', '.join(f'{_size(one) >> 20} MiB' for one in near[:4])}; only the largest is looked at, "
            f"{_size(best) >> 20} MiB"
        )
    return Ram(pieces=_runs(best), notes=tuple(notes))


def _candidates(mappings: Sequence[HostMapping]) -> Iterator[list[HostMapping]]:
    executed = {(one.device, one.inode) for one in mappings if one.inode and "x" in one.permissions}
    usable = [
        one
        for one in mappings
        if one.permissions.startswith("rw-")
        and (one.device, one.inode) not in executed
        and _is_memory(one.path)
        and one.length > 0
    ]
    of_files = sorted(
        (one for one in usable if one.inode), key=lambda one: (one.shared, one.device, one.inode, one.offset)
    )
    for _, pieces in groupby(of_files, key=lambda one: (one.shared, one.device, one.inode)):
        yield _once(pieces)
    for chain in _chains([one for one in usable if not one.inode]):
        yield _whole(chain)


def _is_memory(path: str) -> bool:
    """Whether a mapping of this name can be RAM: an ordinary file, a memfd, or anonymous memory."""
    if path.startswith("["):
        return path.startswith("[anon")
    if path.startswith("/dev/"):
        return path.startswith(_MEMORY_DEVICES)
    return not path.startswith(("anon_inode:", "/sys/", "/proc/", "socket:"))


def _same_memfd(one: HostMapping, other: HostMapping) -> bool:
    return one.path.startswith("/memfd:") and (one.path, one.shared) == (other.path, other.shared)


def _once(pieces: Iterable[HostMapping]) -> list[HostMapping]:
    """Pieces of one file, ascending by offset, without those that lie in an earlier one."""
    kept: list[HostMapping] = []
    end = 0
    for one in pieces:
        if not kept or one.offset >= end:
            kept.append(one)
            end = one.offset + one.length
    return kept


def _chains(mappings: Iterable[HostMapping]) -> Iterator[list[HostMapping]]:
    """Mappings (ascending) that touch, together."""
    chain: list[HostMapping] = []
    for one in mappings:
        if chain and not follows(chain[-1], one):
            yield chain
            chain = []
        chain.append(one)
    if chain:
        yield chain


def _whole(chain: Sequence[HostMapping]) -> list[HostMapping]:
    """The longest stretch of a chain that is a whole number of MiB long; all of it if none is."""
    first: dict[int, int] = {}
    best, longest = (0, len(chain)), 0
    starts = [one.start for one in chain] + [chain[-1].end]
    for index, address in enumerate(starts):
        begin = first.setdefault(address % _MIB, index)
        if address - starts[begin] > longest:
            best, longest = (begin, index), address - starts[begin]
    return list(chain[slice(*best)])


def _size(pieces: Sequence[HostMapping]) -> int:
    return sum(one.length for one in pieces)


def _runs(pieces: Sequence[HostMapping]) -> tuple[HostRun, ...]:
    """Pieces one behind the other; those whose addresses follow each other, and the file's bytes, joined."""
    runs: list[HostRun] = []
    last: HostMapping | None = None
    for one in pieces:
        before = runs[-1].end if runs else 0
        if last is not None and follows(last, one):
            joined = runs.pop()
            runs.append(HostRun(start=joined.start, length=joined.length + one.length, hva=joined.hva))
        else:
            runs.append(HostRun(start=before, length=one.length, hva=one.start))
        last = one
    return tuple(runs)
