"""The details of an event: path, arguments, credentials, namespaces, cgroup.  Read once per event.

Each part is independent: one that cannot be read is None and does not affect the others.

While the guest runs, the process may exit during the read and its memory may be reused by another process.
A task holds a reference to every object that it points at.  So the pointers in its `task_struct` are read
again afterwards.  An object whose pointer is unchanged belonged to the task all the time; what was read
through a changed pointer is discarded (None).  Memory that keeps one version of a page until it is refreshed
(a recording, the gdb stub) gives the same pointers twice, so the check proves nothing there.

At a trap whose vCPU is held or fenced, the task cannot drop a reference.  One pass is enough if it takes less
time than a hold may last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Namespaces, Process
from live.core.memory import Asid, GuestVirtual
from live.core.snapshot import Task, comm_of
from live.linux.cmdline import MAX_ARGS, CommandLine, Strings, command_line
from live.linux.kernel import LinuxKernel
from live.linux.layout import field
from live.linux.paths import PathReader, PathRef
from live.linux.security import SecurityReader

_AGAIN_S = (0.0001, 0.001)
_QUICK_NS = 10_000_000
"""A pass that takes longer may outlast the hold, so its result is checked like any other."""
_MAX_LEVEL = 32  # MAX_PID_NS_LEVEL
_PIDTYPES = {"tgid": 1, "pgid": 2, "sid": 3}  # enum pid_type, since 4.19
_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
_NAMESPACES = {"uts": "uts_ns", "ipc": "ipc_ns", "mnt": "mnt_ns", "net": "net_ns", "cgroup": "cgroup_ns"}
"""Name in `Namespaces` -> member of `struct nsproxy`."""

_IDS = ("uid", "gid", "euid", "egid")

_BEHIND = {
    "thread_pid": ("ns_pid", "namespaces"),
    "fs": ("cwd",),
    "nsproxy": ("namespaces",),
    "cred": (*_IDS, "namespaces", "security"),
    "signal": ("pgid", "sid", "security"),
    "cgroups": ("cgroup", "container_id"),
}
"""Pointer in `task_struct` -> fields of `Process` that are read through it; for mm see `_Image`."""

T = TypeVar("T")


class _Holds(NamedTuple):
    """Guest-virtual addresses of the objects that a task holds references to, from its `task_struct`."""

    mm: int = 0
    thread_pid: int = 0
    fs: int = 0
    nsproxy: int = 0
    cred: int = 0
    signal: int = 0
    cgroups: int = 0


class _Image(NamedTuple):
    """Fields of `Process` that are read through its `mm_struct`; ``exe`` also needs its root directory."""

    exe: str | None = None
    args: tuple[str, ...] | None = None
    args_truncated: bool = False


_NO_IMAGE = _Image()


class ProcessReader:
    """Reads the details of a task and makes a `Process` of it."""

    def __init__(self, kernel: LinuxKernel, boot_ns: int | None = None, *, max_args: int = MAX_ARGS) -> None:
        """Compile the readers.

        ``boot_ns``: UTC ns at which the guest's boot clock was 0, if known; may be set anew.  ``max_args``:
        bytes of a command line that are kept.  Raises `SymbolsMissing` if the kernel lacks a needed member.
        """
        self._kernel = kernel
        self.max_args = max_args
        self.boot_ns = boot_ns
        unpacker, symbols = kernel.unpacker, kernel.symbols
        self._paths = PathReader(kernel)
        self._security = SecurityReader(kernel)
        pointers = ("thread_pid", "fs", "nsproxy", "real_cred", "signal", "cgroups")
        self._holds = unpacker(
            "task_struct",
            (
                field("tgid"),
                field("start_boottime", "real_start_time"),
                field("self_exec_id"),
                field("mm"),
                *map(field, pointers),
            ),
        )
        self._mm = unpacker(
            "mm_struct",
            tuple(map(field, ("exe_file", "arg_start", "arg_end", "env_start", "env_end"))),
        )
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
        self._nsproxy = unpacker("nsproxy", tuple(map(field, _NAMESPACES.values())))
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

    def describe(self, task: Task, *, standing: bool = False) -> Process:
        """The process of a task, as guest memory has it now.  Guest memory never makes this raise.

        ``standing``: the vCPU is held or fenced, so the task's references do not change while they are read
        (for `_QUICK_NS` at least).
        """
        begin = time.monotonic_ns()
        before = self._held(task)
        root = self._root(before)
        image = self._image(task, before, root)
        if standing:
            process = self._read(task, before, root, image)
            if time.monotonic_ns() - begin < _QUICK_NS:
                return process
        # exit_mm() and exit_fs() come early in do_exit(): what needs mm and fs is read and checked first.
        now = self._held(task)
        if (now.mm, now.fs) != (before.mm, before.fs):
            image = _NO_IMAGE
        process = self._read(task, before, root, image)
        after = self._held(task)
        lost = {pointer for pointer in _BEHIND if getattr(after, pointer) != getattr(before, pointer)}
        if not lost:
            return process
        nothing = self._read(task, _Holds(), None, _NO_IMAGE)
        return replace(process, **{name: getattr(nothing, name) for each in lost for name in _BEHIND[each]})

    def _held(self, task: Task) -> _Holds:
        """The pointers of a task now: all 0 if its memory was reused, mm 0 if it has exec'ed since."""
        try:
            tgid, start, generation, mm, *pointers = self._holds(task.address)
        except MemoryFault:
            return _Holds(task.mm)  # a page missing from a recording: go by what the snapshot has
        # release_task() clears thread_pid before the objects that the task references are freed.
        if (tgid, start) != task.identity or not pointers[0]:
            return _Holds()
        return _Holds(task.mm if (generation, mm) == (task.generation, task.mm) else 0, *pointers)

    def _root(self, at: _Holds) -> PathRef | None:
        return _try(lambda: self._paths.root(at.fs), None) if at.fs else None

    def _image(self, task: Task, at: _Holds, root: PathRef | None) -> _Image:
        if not at.mm:
            return _NO_IMAGE
        exe_file, *strings = _try(lambda: self._mm(at.mm), (0,) * 5)
        line = self._command_line(task, Strings._make(strings))
        return _Image(
            exe=_try(lambda: self._paths.text(self._paths.file(exe_file), root), None) if exe_file else None,
            args=line.args,
            args_truncated=line.truncated,
        )

    def _read(self, task: Task, at: _Holds, root: PathRef | None, image: _Image) -> Process:
        uid, gid, euid, egid, user_ns = _try(lambda: self._cred(at.cred), (task.uid, None, None, None, None))
        cwd = _try(lambda: self._paths.text(self._paths.pwd(at.fs), root), None) if at.fs else None
        cgroup = _try(lambda: self._cgroup_path(at.cgroups), None)
        nowhere: tuple[int | None, int | None] = (None, None)
        ns_pid, pid_ns = _try(lambda: self._innermost(at.thread_pid), nowhere)
        return Process(
            identity=task.identity,
            generation=task.generation,
            pid=task.identity.pid,
            ppid=task.ppid,
            comm=comm_of(task),
            kernel=task.kernel,
            task=GuestVirtual(task.address),
            asid=Asid(task.asid) if task.asid else None,
            start_ns=self.boot_ns + task.identity.start if self.boot_ns is not None else None,
            **image._asdict(),
            cwd=cwd,
            uid=uid,
            gid=gid,
            euid=euid,
            egid=egid,
            ns_pid=ns_pid,
            pgid=_try(lambda: self._group(at.signal, "pgid"), None),
            sid=_try(lambda: self._group(at.signal, "sid"), None),
            namespaces=self._namespaces(at.nsproxy, pid_ns, user_ns),
            cgroup=cgroup,
            container_id=_container(cgroup),
            security=self._security.read(task.address, at.cred, at.signal, (uid, gid, euid, egid), user_ns)
            if at.cred
            else None,
        )

    def _command_line(self, task: Task, at: Strings) -> CommandLine:
        """The command line, cut at the first page that is not in RAM.

        A short read is retried: during copy-on-write the page-table entry is briefly empty (wp_page_copy()).
        """
        if task.kernel or not task.asid:
            return CommandLine(b"")
        table = self._kernel.user_space(task.asid)

        def read(start: int, length: int) -> bytes:
            raw = table.read_until_fault(start, length)
            for delay in _AGAIN_S:
                if len(raw) == length or not self._held(task).mm:
                    break
                time.sleep(delay)
                raw = max(raw, table.read_until_fault(start, length), key=len)
            return raw

        return command_line(at, read, self.max_args)

    def _innermost(self, pid: int) -> tuple[int | None, int | None]:
        """(tgid in the process's own pid namespace, address of that namespace) of a `struct pid`."""
        (level,) = self._pid_level(pid)
        nr, ns = self._upid(pid + self._pid_numbers + min(level, _MAX_LEVEL) * self._upid_size)
        return nr, ns

    def _group(self, signal: int, kind: str) -> int | None:
        """Process group or session id in the initial pid namespace, from a `signal_struct`."""
        pid = self._pointer(signal + self._signal_pids + 8 * _PIDTYPES[kind])
        number: int | None = self._upid(pid + self._pid_numbers)[0] if pid else None
        return number

    def _namespaces(self, nsproxy: int, pid_ns: int | None, user_ns: int | None) -> Namespaces | None:
        if not nsproxy:
            return None
        addresses = _try(lambda: self._nsproxy(nsproxy), ())
        at = {**dict(zip(_NAMESPACES, addresses, strict=False)), "pid": pid_ns, "user": user_ns}
        found: dict[str, int | None] = {}
        for name, number in self._inum.items():
            address = at.get(name)
            try:
                found[name] = number(address)[0] if address else None
            except MemoryFault:
                found[name] = None
        return Namespaces(**found)

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
        """Path in the unified (v2) cgroup hierarchy; None if the kernel has no cgroups."""
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
    """The container id: the last run of 64 hexadecimal digits in the cgroup path, where runtimes put it."""
    found = _CONTAINER.findall(cgroup) if cgroup else []
    return found[-1] if found else None


def _try(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except MemoryFault:
        return otherwise
