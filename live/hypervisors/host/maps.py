"""The mappings of a process, from /proc/PID/maps, and the files behind them (proc(5))."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from live.core.errors import GuestGone, NotPermitted

PROC = Path("/proc")
_MAX_BYTES = 64 << 20
"""So much of /proc/PID/maps is read: half a million mappings, eight times what Linux allows by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMapping:
    """One line of /proc/PID/maps; ``start`` and ``end`` are addresses in the process."""

    start: int
    end: int
    permissions: str
    """``rwxp`` or ``rwxs``, with ``-`` for what is not allowed."""
    offset: int
    """In the file, bytes."""
    device: str
    """``major:minor``, hexadecimal.  Of the file system; `os.stat` may show another one (btrfs, overlay)."""
    inode: int
    """0 for memory without a file."""
    path: str
    """Of the file as the kernel shows it, perhaps with `` (deleted)``; or a name in brackets; or empty."""

    @property
    def shared(self) -> bool:
        """Whether what is written goes to the file, and is seen by whoever maps it."""
        return self.permissions[3:4] == "s"

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


def parse_maps(text: str) -> list[HostMapping]:
    """The mappings in ``text``, ascending: ``start-end perms offset dev inode path``.

    Lines that are none are passed over.
    """
    mappings = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, IndexError):
            fields = line.split(None, 5)
            start, _, end = fields[0].partition("-")
            mappings.append(
                HostMapping(
                    start=int(start, 16),
                    end=int(end, 16),
                    permissions=fields[1],
                    offset=int(fields[2], 16),
                    device=fields[3],
                    inode=int(fields[4]),
                    path=fields[5] if len(fields) > 5 else "",
                )
            )
    return mappings


def read_maps(pid: int, proc: Path = PROC) -> list[HostMapping]:
    """The mappings of a process, ascending; none for a kernel thread, and for a process that has exited.

    Raises `GuestGone` if there is no such process (any more), `NotPermitted`.
    """
    try:
        with (proc / str(pid) / "maps").open("rb") as file:
            return parse_maps(file.read(_MAX_BYTES).decode("utf-8", "replace"))
    except FileNotFoundError:
        raise GuestGone(f"The process {pid} has ended; start the guest again.") from None
    except ProcessLookupError:  # what some kernels answer for a process without memory
        return []
    except OSError as error:
        raise NotPermitted(
            f"The mappings of process {pid} may not be read ({error.strerror}); run as the user that owns "
            "it, or as root."
        ) from None


def mapping_at(mappings: Sequence[HostMapping], address: int) -> HostMapping | None:
    """The mapping that holds ``address``."""
    for one in mappings:
        if one.start <= address < one.end:
            return one
    return None


def shared_file_at(mappings: Sequence[HostMapping], address: int, length: int) -> HostMapping | None:
    """The mapping at ``address``, if ``length`` bytes from there are shared and are one stretch of one file.

    ``mappings``: ascending.  madvise(2) and mprotect(2) split a mapping of one file into several.
    """
    first = mapping_at(mappings, address)
    if first is None or not first.shared:
        return None
    last = first
    for one in mappings[mappings.index(first) + 1 :]:
        if last.end >= address + length:
            break
        if not (one.shared and follows(last, one)):
            return None
        last = one
    return first if last.end >= address + length else None


def follows(one: HostMapping, other: HostMapping) -> bool:
    """Whether ``other`` continues ``one``: the next address, and of the same file the next byte."""
    return (
        one.end == other.start
        and (one.shared, one.device, one.inode) == (other.shared, other.device, other.inode)
        and (one.inode == 0 or other.offset - one.offset == one.length)
    )


def open_backing(mapping: HostMapping, pid: int, proc: Path = PROC) -> int | None:
    """Open the file behind a mapping of another process, unlinked or not; None where we may not.

    The caller closes the descriptor.
    """
    directory = proc / str(pid)
    exact = directory / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
    candidates = [exact]
    with contextlib.suppress(OSError):
        candidates += [directory / "fd" / name for name in os.listdir(directory / "fd")]
    if mapping.path.startswith("/"):
        candidates.append(Path(mapping.path))
    for path in candidates:
        try:
            found = path.stat()
            if found.st_ino != mapping.inode or not stat.S_ISREG(found.st_mode):
                continue
            if path != exact and not _same_file(path, found, mapping):
                continue
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return None


def _same_file(path: Path, found: os.stat_result, mapping: HostMapping) -> bool:
    """Whether a file with the inode's number is the one that is mapped: same device, or same name."""
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    return mapping.device == device or mapping.path == (os.readlink(path) if path.is_symlink() else str(path))
