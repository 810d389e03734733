"""What an event carries beyond the task itself: read once, when the event becomes true.

Each part is optional: what cannot be read is None, and no part's failure hides another's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Namespaces, Process
from live.core.memory import Asid, GuestVirtual
from live.core.tasklist import Task, comm_of
from live.introspect.layout import field
from live.introspect.linux import LinuxKernel
from live.introspect.paging import PageTable
from live.introspect.paths import PathReader

MAX_ARGS = 128 * 1024
"""Bytes of command line that are kept: MAX_ARG_STRLEN, the longest single argument."""
_AGAIN_S = (0.0001, 0.001)
_MAX_LEVEL = 32  # MAX_PID_NS_LEVEL
_PIDTYPES = {"tgid": 1, "pgid": 2, "sid": 3}  # enum pid_type, since 4.19
_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
_NAMESPACES = (
    ("uts", "uts_ns"),
    ("ipc", "ipc_ns"),
    ("mnt", "mnt_ns"),
    ("net", "net_ns"),
    ("cgroup", "cgroup_ns"),
)

_IDS = ("uid", "gid", "euid", "egid")

T = TypeVar("T")


class ProcessReader:
    """Completes tasks to processes."""

    def __init__(self, kernel: LinuxKernel, boot_ns: int | None = None) -> None:
        """Compile the readers.  ``boot_ns``: UTC ns at which the guest's boot clock was 0, if known."""
        self._kernel = kernel
        self._boot_ns = boot_ns
        unpacker, symbols = kernel.unpacker, kernel.symbols
        self._paths = PathReader(kernel)
        self._task = unpacker(
            "task_struct",
            (
                field("fs"),
                field("nsproxy"),
                field("thread_pid"),
                field("real_cred"),
                field("signal"),
                field("cgroups"),
            ),
        )
        self._mm = unpacker("mm_struct", (field("exe_file"), field("arg_start"), field("arg_end")))
        self._cred = unpacker(
            "cred",
            (*(field(f"{name}.val", name) for name in _IDS), field("user_ns")),
        )
        self._pid_level = unpacker("pid", (field("level"),))
        self._upid = unpacker("upid", (field("nr"), field("ns")))
        self._upid_size = symbols.size("upid")
        self._pid_numbers = symbols.offset("pid", "numbers")
        self._signal_pids = symbols.offset("signal_struct", "pids")
        self._pointer = kernel.memory.u64
        self._nsproxy = unpacker("nsproxy", tuple(field(member) for _, member in _NAMESPACES))
        self._inum = {
            name: unpacker(kind, (field("ns.inum"),))
            for name, kind in (
                ("uts", "uts_namespace"),
                ("ipc", "ipc_namespace"),
                ("mnt", "mnt_namespace"),
                ("net", "net"),
                ("cgroup", "cgroup_namespace"),
                ("pid", "pid_namespace"),
                ("user", "user_namespace"),
            )
            if symbols.has(kind, "ns.inum")
        }
        self._cgroup = self._cgroup_readers()

    def describe(self, task: Task) -> Process:
        """Everything that is known of a task, now.  Never raises on account of guest memory."""
        fs, nsproxy, thread_pid, cred, signal, cgroups = _try(lambda: self._task(task.address), (0,) * 6)
        uid, gid, euid, egid, user_ns = _try(lambda: self._cred(cred), (task.uid, None, None, None, None))
        exe_file, arg_start, arg_end = _try(lambda: self._mm(task.mm), (0, 0, 0)) if task.mm else (0, 0, 0)
        root = _try(lambda: self._paths.root(fs), None) if fs else None
        cwd = _try(lambda: self._paths.text(self._paths.pwd(fs), root), None) if fs else None
        exe = _try(lambda: self._paths.text(self._paths.file(exe_file), root), None) if exe_file else None
        raw = b"" if task.kernel else self.arguments(task.asid, arg_start, arg_end)
        cgroup = _try(lambda: self._cgroup_path(cgroups), None)
        nowhere: tuple[int | None, int | None] = (None, None)
        ns_pid, pid_ns = _try(lambda: self._innermost(thread_pid), nowhere)
        return Process(
            identity=task.identity,
            generation=task.generation,
            pid=task.identity.pid,
            ppid=task.ppid,
            comm=comm_of(task),
            kernel=task.kernel,
            task=GuestVirtual(task.address),
            asid=Asid(task.asid) if task.asid else None,
            start_ns=self._boot_ns + task.identity.start if self._boot_ns is not None else None,
            exe=exe,
            args=_split(raw) if raw is not None and not task.kernel else None,
            args_truncated=arg_end - arg_start > MAX_ARGS,
            cwd=cwd,
            uid=uid,
            gid=gid,
            euid=euid,
            egid=egid,
            ns_pid=ns_pid,
            pgid=_try(lambda: self._group(signal, "pgid"), None),
            sid=_try(lambda: self._group(signal, "sid"), None),
            namespaces=self._namespaces(nsproxy, pid_ns, user_ns),
            cgroup=cgroup,
            container_id=_container(cgroup),
        )

    def arguments(self, asid: int, start: int, end: int) -> bytes | None:
        """The raw bytes of the command line between two guest-virtual addresses; None if unreadable.

        At most `MAX_ARGS`; cut at the first page that is not in RAM.  That is looked at more than once:
        while the kernel copies a page on write, no page is there for a moment (wp_page_copy()).
        """
        if not asid or not start < end:
            return None
        table = PageTable(self._kernel.memory.physical, asid, self._kernel.levels)
        length = min(end - start, MAX_ARGS)
        raw = table.read_until_fault(start, length)
        for delay in _AGAIN_S:
            if len(raw) == length:
                break
            time.sleep(delay)
            raw = max(raw, table.read_until_fault(start, length), key=len)
        return raw or None

    def _innermost(self, pid: int) -> tuple[int | None, int | None]:
        """(the tgid in the process's own pid namespace, address of that namespace)."""
        (level,) = self._pid_level(pid)
        nr, ns = self._upid(pid + self._pid_numbers + min(level, _MAX_LEVEL) * self._upid_size)
        return nr, ns

    def _group(self, signal: int, kind: str) -> int | None:
        """Process group or session, as a pid of the initial namespace."""
        pid = self._pointer(signal + self._signal_pids + 8 * _PIDTYPES[kind])
        number: int | None = self._upid(pid + self._pid_numbers)[0] if pid else None
        return number

    def _namespaces(self, nsproxy: int, pid_ns: int | None, user_ns: int | None) -> Namespaces | None:
        if not nsproxy:
            return None
        pointers = _try(lambda: self._nsproxy(nsproxy), None)
        found: dict[str, int | None] = {}
        for (name, _), address in zip(_NAMESPACES, pointers or (), strict=False):
            found[name] = self._number(name, address)
        return Namespaces(**found, pid=self._number("pid", pid_ns), user=self._number("user", user_ns))

    def _number(self, name: str, address: int | None) -> int | None:
        reader = self._inum.get(name)
        if not address or reader is None:
            return None
        return _try(lambda: int(reader(address)[0]), None)

    def _cgroup_readers(self) -> tuple[Callable[[int], tuple[int, ...]], ...] | None:
        unpacker = self._kernel.unpacker
        try:
            return (
                unpacker("css_set", (field("dfl_cgrp"),)),
                unpacker("cgroup", (field("kn"),)),
                # kernfs_node.parent became __parent in 6.15 (kernel commit 633488947ef6).
                unpacker("kernfs_node", (field("__parent", "parent"), field("name"))),
            )
        except SymbolsMissing:
            return None  # a kernel without CONFIG_CGROUPS

    def _cgroup_path(self, css_set: int) -> str | None:
        """The path in the unified (v2) hierarchy."""
        if self._cgroup is None or not css_set:
            return None
        of_set, of_cgroup, of_node = self._cgroup
        (node,) = of_cgroup(of_set(css_set)[0])
        parts: list[bytes] = []
        for _ in range(128):
            parent, name = of_node(node)
            if not parent:
                return "/" + b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")
            parts.append(self._kernel.memory.string(name, 255))
            node = parent
        return None


def _container(cgroup: str | None) -> str | None:
    """The container's id, as every runtime puts it into the cgroup's name: 64 hexadecimal digits."""
    found = _CONTAINER.findall(cgroup) if cgroup else []
    return found[-1] if found else None


def _split(raw: bytes) -> tuple[str, ...]:
    return tuple(part.decode("utf-8", "surrogateescape") for part in raw.removesuffix(b"\0").split(b"\0"))


def _try(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except MemoryFault:
        return otherwise
