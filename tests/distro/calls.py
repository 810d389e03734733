"""The system calls by which a process changes what is compared, and when each process made one.

A look at a process comes a moment after the event, where the process was not held.  If a field differs then,
the record of these calls says whether the process may have changed it in between.
"""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterable

from tests.guest.truth import Truth, TruthOther

EVENTS = ("raw_syscalls/sys_enter", "cgroup/cgroup_attach_task")
"""What the tracer is to record; the first one with a filter for ``RECORDED``."""
_ATTACH = -1
"""Not a system call: somebody has put the process into another cgroup."""

_SLACK_NS = 20_000_000
"""The record has it when it is done; /proc may have shown it a while before."""

# arch/x86/entry/syscalls/syscall_64.tbl
_EXEC = frozenset({59, 322})  # execve, execveat
_NAME = frozenset({157})  # prctl
_NAMESPACES = frozenset({272, 308})  # unshare, setns
_MOUNTS = frozenset({155, 161, 165, 166, 429}) | _NAMESPACES  # pivot_root, chroot, mount, umount2, move_mount
_CWD = frozenset({80, 81}) | _MOUNTS  # chdir, fchdir
_GROUPS = frozenset({109, 112})  # setpgid, setsid
_IDS = frozenset({105, 106, 113, 114, 116, 117, 119, 122, 123})  # set*uid, set*gid
RECORDED = _EXEC | _NAME | _CWD | _GROUPS | _IDS
_CHANGES = {
    "name": _NAME,
    "args": _NAME,  # who overwrites its words gives itself a name, too
    "executable": _NAME | _MOUNTS,
    "working_directory": _CWD,
    "real_user.id": _IDS,
    "user.id": _IDS,
    "real_group.id": _IDS,
    "group.id": _IDS,
    "group_leader.pid": _GROUPS,
    "session_leader.pid": _GROUPS,
    "cgroup": frozenset({_ATTACH}),
}
"""Field -> what changes it; namespaces have ``_NAMESPACES``, and nothing else is changed by a call."""


class Calls:
    """Who made which of them, and when."""

    def __init__(self, truth: Truth) -> None:
        """From a record with ``EVENTS``."""
        self._of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for event in truth.events:
            if not isinstance(event, TruthOther):
                continue
            if event.name == "sys_enter" and (found := re.match(r"NR (-?\d+)", event.text)):
                self._of[event.by].append((event.ts, int(found[1])))
            elif event.name == "cgroup_attach_task" and (found := re.search(r" pid=(\d+)", event.text)):
                self._of[int(found[1])].append((event.ts, _ATTACH))
        for calls in self._of.values():
            calls.sort()

    def changed(self, field: str, pids: Iterable[int], begin: int, end: int) -> bool:
        """Whether one of these may have changed a field between two moments."""
        if field == "parent.pid":
            return True  # by another one's end
        if field == "cgroup":
            end += _SLACK_NS
        wanted = _NAMESPACES if field.startswith("namespaces.") else _CHANGES.get(field, frozenset())
        return any(number in wanted for pid in pids for _, number in self._between(pid, begin, end))

    def last_exec(self, pid: int, moment: int) -> int | None:
        """When it last called execve before a moment."""
        return next((ts for ts, number in reversed(self._between(pid, 0, moment)) if number in _EXEC), None)

    def _between(self, pid: int, begin: int, end: int) -> list[tuple[int, int]]:
        calls = self._of.get(pid, [])
        return calls[bisect.bisect_left(calls, (begin, -9)) : bisect.bisect_right(calls, (end, 1 << 30))]
