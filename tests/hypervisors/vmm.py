"""A child of ours that has what a VMM has: guest RAM, mapped in one way or another."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from live.hypervisors.host.maps import PROC
from live.hypervisors.process import PROCESS, ProcessGuest

MIB = 1 << 20

CHILD = """
import mmap, os, sys
kind, size = sys.argv[1], int(sys.argv[2])
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
if kind == "anonymous":
    kept = [mmap.mmap(-1, size, flags=private)]
elif kind == "split":
    kept = [mmap.mmap(-1, size, flags=private)]
    kept[0].madvise(mmap.MADV_DONTFORK, 1 << 20, 1 << 21)
else:
    memfd = os.memfd_create("guest-ram")
    os.ftruncate(memfd, size)
    if kind == "pieces":
        half = size // 2
        kept = [mmap.mmap(memfd, half), mmap.mmap(-1, 4096), mmap.mmap(memfd, half, offset=half)]
    else:
        kept = [mmap.mmap(memfd, size)]
        if kind == "split memfd":
            kept[0].madvise(mmap.MADV_DONTFORK, 1 << 20, 1 << 21)
print("ready", flush=True)
if sys.stdin.readline() == "exec\\n":
    os.execv("/bin/sh", ["sh", "-c", "echo ready; read line"])
"""
KINDS = ("anonymous", "split", "memfd", "split memfd", "pieces")
Vmm = Callable[..., subprocess.Popen[bytes]]


@contextlib.contextmanager
def children() -> Iterator[Vmm]:
    """Starts children; they end with the context."""
    started = []

    def start(kind: str, size: int = 64 * MIB) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def attach(pid: int) -> ProcessGuest:
    guest = PROCESS.attach(str(pid))
    assert isinstance(guest, ProcessGuest)
    return guest


def begin_of(guest: ProcessGuest, size: int) -> int:
    """Where RAM begins: a neighbour may lie before it (see `live.hypervisors.process.find`)."""
    return guest.unplaced.size - size


def write(guest: ProcessGuest, offset: int, data: bytes) -> None:
    """As the VMM would."""
    with (PROC / str(guest.info.pid) / "mem").open("r+b", buffering=0) as file:
        for hva, length in guest.unplaced._plain.pieces(offset, len(data)):
            file.seek(hva)
            file.write(data[:length])
            data = data[length:]
