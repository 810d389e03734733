"""The guest's own process list, from its /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PF_KTHREAD = 0x200000  # include/linux/sched.h


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcEntry:
    """One line of programs/proclist.c."""

    pid: int
    """The thread group's id, as everywhere in /proc's top level."""
    ppid: int
    tgid: int
    state: str
    threads: int
    start_ticks: int
    """Of CLOCK_BOOTTIME since boot, in 1/100 s."""
    uid: int
    gid: int
    kernel: bool
    name: str
    """As /proc tells it: with what a kernel worker works on appended, and not cut to 15 characters."""

    @property
    def comm(self) -> str:
        """``task_struct.comm``: the name without what /proc adds (fs/proc/array.c: proc_task_name)."""
        if not self.kernel:
            return self.name
        worker = re.match(r"kworker/(?:u?\d+:\d+[A-Z]*|R-[^+]*)", self.name)
        return (worker[0] if worker else self.name)[:15]


def parse(text: str) -> Iterator[ProcEntry]:
    """Parse what programs/proclist.c prints."""
    for line in text.splitlines():
        pid, ppid, tgid, state, threads, start, uid, gid, flags, name = line.split(" ")
        yield ProcEntry(
            pid=int(pid),
            ppid=int(ppid),
            tgid=int(tgid),
            state=state,
            threads=int(threads),
            start_ticks=int(start),
            uid=int(uid),
            gid=int(gid),
            kernel=bool(int(flags) & _PF_KTHREAD),
            name=bytes.fromhex(name).decode(errors="replace"),
        )
