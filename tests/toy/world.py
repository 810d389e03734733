"""The toy's own kernel: it writes what `tests.toy.system` reads, into a bytearray.

=======  ==========================================================================================
gpa      what is there
=======  ==========================================================================================
0x0000   `HEADER`: magic, boot id, forks, tasks, cursor, ticks, UTC ns of the boot, hostname
0x0100   `SLOTS` tasks, each a `TASK`; free if its state is 0 (the rest of it stays as it was)
0x1000   two pages for each task, for its even and its odd images: the page table (`tests.toy.machine.ENTRY`),
         and the arguments from 0x100 on
=======  ==========================================================================================
"""

from __future__ import annotations

import struct

from live.core.memory import GuestVirtual
from tests.toy.machine import ENTRY

MAGIC = b"TOY-OS 1"
HEADER = struct.Struct("<8s16sQIIQQ16s")
TASK = struct.Struct("<IIIIQII16s")
"""State, pid, ppid, generation, ns since boot at which it began, exit code, uid, name."""
TABLE, SLOTS, STRIDE = 0x100, 8, 64
PAGES, ARGUMENTS, LONGEST = 0x1000, 0x100, 0x100
FORKS_AT, TASKS_AT = 24, 32
"""gpas of two counters in the header, of 8 and 4 bytes."""
RAM = PAGES + 2 * SLOTS * 0x1000
FREE, LIVE, DEAD = 0, 1, 2
FORKED, EXECUTED, EXITED = (GuestVirtual(0xF000 + 16 * number) for number in range(3))
"""Addresses of the kernel's functions that finish a step in the life of a process; ``a0`` is the task."""
BOOT_NS = 1_700_000_000_000_000_000


class World:
    """A running toy with init and a shell."""

    def __init__(self) -> None:
        self.ram = bytearray(RAM)
        self.forks = self.cursor = self.ticks = 0
        self.init = self.fork(0)
        self.execute(self.init, b"init", b"/sbin/init")
        self.shell = self.fork(1)
        self.execute(self.shell, b"sh", b"/bin/sh")

    def fork(self, ppid: int) -> int:
        """A new process with its parent's name; the gpa of its task."""
        at = next(at for at in self._tasks() if self._get(at)[0] == FREE)
        parents = [self._get(other) for other in self._tasks()]
        name = next((task[7] for task in parents if task[0] == LIVE and task[1] == ppid), b"")
        self.cursor += 1
        self.forks += 1
        self._put(at, LIVE, self.cursor, ppid, 0, self.cursor * 1_000_000, 0, 1000, name)
        self._image(page_of(at), name)
        return at

    def execute(self, at: int, name: bytes, *arguments: bytes) -> None:
        """Another image, in the same process, and in another page."""
        state, pid, ppid, generation, start, code, uid, _ = self._get(at)
        self._image(page_of(at, generation + 1), *arguments)
        self._put(at, state, pid, ppid, generation + 1, start, code, uid, name)

    def exit(self, at: int, code: int) -> None:
        """Its last thread returns."""
        _, pid, ppid, generation, start, _, uid, name = self._get(at)
        self._put(at, DEAD, pid, ppid, generation, start, code << 8, uid, name)

    def reap(self, at: int) -> None:
        """Its parent has asked for its status."""
        self._put(at, FREE, *self._get(at)[1:])

    def _tasks(self) -> range:
        return range(TABLE, TABLE + SLOTS * STRIDE, STRIDE)

    def _get(self, at: int) -> tuple:
        return TASK.unpack_from(self.ram, at)

    def _put(self, at: int, *values: int | bytes) -> None:
        TASK.pack_into(self.ram, at, *values)
        self.ticks += 1
        count = sum(self._get(task)[0] != FREE for task in self._tasks())
        header = (MAGIC, bytes(range(16)), self.forks, count, self.cursor, self.ticks, BOOT_NS, b"toybox")
        HEADER.pack_into(self.ram, 0, *header)

    def page(self, at: int) -> int:
        """gpa of the page of the image that the task at ``at`` runs."""
        return page_of(at, self._get(at)[3])

    def _image(self, page: int, *arguments: bytes) -> None:
        ENTRY.pack_into(self.ram, page, page + ARGUMENTS, LONGEST)
        text = b"".join(one + b"\0" for one in arguments) + b"\0"
        self.ram[page + ARGUMENTS : page + ARGUMENTS + len(text)] = text


def page_of(at: int, generation: int = 0) -> int:
    """gpa of the page that belongs to the task at ``at``, and to its image of this generation."""
    return PAGES + ((at - TABLE) // STRIDE + generation % 2 * SLOTS) * 0x1000
