"""Paths as the kernel's d_path() writes them: a walk up the dentries and mounts to a root."""

from __future__ import annotations

from typing import NamedTuple

from live.core.errors import MemoryFault
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

_MAX_COMPONENTS = 512
_MAX_PATH = 4096  # PATH_MAX


class PathRef(NamedTuple):
    """A C `struct path`: guest-virtual addresses of its `struct vfsmount` and `struct dentry`."""

    mnt: int
    dentry: int


class PathReader:
    """Reads a `struct path` as text."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Compile the readers of `dentry`, `mount` and `path`.  Raises `SymbolsMissing`."""
        symbols = kernel.symbols
        self._memory = kernel.memory
        self._dentry = kernel.unpacker(
            "dentry", (field("d_parent"), field("d_name.name"), field("d_name.len"), field("d_hash.pprev"))
        )
        self._mount = kernel.unpacker("mount", (field("mnt_parent"), field("mnt_mountpoint")))
        self._vfsmount = symbols.offset("mount", "mnt")
        self._path = (field("mnt"), field("dentry"))
        self._unpack_path = kernel.unpacker("path", self._path)
        self._file_path = symbols.offset("file", "f_path", "__f_path")
        fs = "fs_struct"
        self._root, self._pwd = symbols.offset(fs, "root"), symbols.offset(fs, "pwd")

    def file(self, address: int) -> PathRef:
        """`f_path` of the C `struct file` at a guest-virtual address.  Raises `MemoryFault`."""
        return PathRef(*self._unpack_path(address + self._file_path))

    def root(self, fs: int) -> PathRef:
        """The root directory of the C `struct fs_struct` at ``fs``.  Raises `MemoryFault`."""
        return PathRef(*self._unpack_path(fs + self._root))

    def pwd(self, fs: int) -> PathRef:
        """The working directory of the C `struct fs_struct` at ``fs``.  Raises `MemoryFault`."""
        return PathRef(*self._unpack_path(fs + self._pwd))

    def text(self, path: PathRef, root: PathRef | None) -> str | None:
        """The path as the process sees it, relative to ``root``; None if it cannot be read.

        Like the kernel, " (deleted)" is appended to an unlinked name.  At most `_MAX_PATH` bytes.
        """
        try:
            return self._walk(path, root)
        except MemoryFault:
            return None

    def _walk(self, path: PathRef, root: PathRef | None) -> str | None:
        mount, dentry = path.mnt - self._vfsmount, path.dentry
        parts: list[bytes] = []
        deleted = False
        total = 0
        for step in range(_MAX_COMPONENTS):
            if root is not None and dentry == root.dentry and mount + self._vfsmount == root.mnt:
                break
            parent, name, length, hashed = self._dentry(dentry)
            if step == 0:
                # d_unlinked(): unhashed, and not the root of a file system.
                deleted = hashed == 0 and parent != dentry
            if parent == dentry:  # the root of this mount: go on at its mountpoint
                above, mountpoint = self._mount(mount)
                if above == mount:
                    break
                mount, dentry = above, mountpoint
                continue
            total += length + 1
            if total > _MAX_PATH:
                return None
            parts.append(self._memory.read(name, length))
            dentry = parent
        else:
            return None
        whole = b"/" + b"/".join(reversed(parts))
        return whole.decode("utf-8", "surrogateescape") + (" (deleted)" if deleted else "")
