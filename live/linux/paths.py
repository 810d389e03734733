"""Paths as the kernel's d_path() writes them: a walk up the dentries and mounts to a root.

Theory of operation
-------------------
The rules are those of `d_path()` and `__prepend_path()` (fs/d_path.c).  A dentry is climbed to the root of
its *mount* (`mnt_root`, which need not be the root of a file system), then the mount to its mountpoint in
the mount above, until the root of the process is reached.  /proc/PID/exe and /proc/PID/cwd show a process
with the same root the same text, with one difference.

A path that does not lead to the root of the process begins with `UNREACHABLE`, as getcwd(2) writes it (/proc
leaves that out).  The rest is relative to the topmost mount: that of another mount namespace or outside of
a chroot, or one that was unmounted while in use.  It is "/" if a directory was moved out of the tree that
its mount shows, and no name leads to it.

Rules
-----
* What cannot be read is None, never a shorter path.  So is what is longer than PATH_MAX, for which the links
  of /proc give ENAMETOOLONG.
* Nothing is asserted: a loop of dentries runs out of bytes, and one of mounts out of steps.

Known warts
-----------
* The kernel's locks (`rename_lock`, `mount_lock`) are not looked at.  While the guest runs, a rename may give
  a path of which one part is old and another new.
* A file name may end with `DELETED` or contain anything else: the text is ambiguous, as the kernel's is.
"""

from __future__ import annotations

from typing import NamedTuple

from live.core.errors import MemoryFault, SymbolsMissing
from live.linux.dnames import DynamicNames
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

UNREACHABLE = b"(unreachable)"
DELETED = b" (deleted)"
_PATH_MAX = 4096
"""Bytes of a path with the NUL behind it."""
_MAX_STEPS = 4096
"""Half of them for names, each of which takes two bytes at least; the others go from mount to mount."""


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
        # A short name lies in the dentry itself: d_iname is d_shortname.string since 6.14.
        inline = ("d_shortname.string", "d_iname")
        self._dentry = kernel.unpacker(
            "dentry",
            (
                field("d_parent"),
                field("d_name.name"),
                field("d_name.len"),
                field("d_hash.pprev"),
                field(*inline, default=b""),
            ),
        )
        short = next((found for name in inline if (found := symbols.member("dentry", name))), None)
        self._inline = short.offset if short else -1
        self._mount = kernel.unpacker(
            "mount", (field("mnt_parent"), field("mnt_mountpoint"), field("mnt.mnt_root"))
        )
        self._vfsmount = symbols.offset("mount", "mnt")
        self._path = (field("mnt"), field("dentry"))
        self._unpack_path = kernel.unpacker("path", self._path)
        self._file_path = symbols.offset("file", "f_path", "__f_path")
        fs = "fs_struct"
        self._root, self._pwd = symbols.offset(fs, "root"), symbols.offset(fs, "pwd")
        self._names: DynamicNames | None
        try:
            self._names = DynamicNames(kernel)
        except SymbolsMissing:
            self._names = None

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
        """The path as the process with that ``root`` sees it; None if it, or its root, cannot be read.

        `DELETED` follows an unlinked name; `UNREACHABLE` precedes what the root does not lead to.
        """
        if root is None:
            return None
        try:
            found = self._walk(path, root)
        except MemoryFault:
            return None
        return found.decode("utf-8", "surrogateescape") if found else None

    def _walk(self, path: PathRef, root: PathRef) -> bytes | None:
        if path == root:
            return b"/" + self._suffix_of_root(root.dentry)
        top, top_mount = root.dentry, root.mnt - self._vfsmount
        dentry, mount = path.dentry, path.mnt - self._vfsmount
        above, mountpoint, mount_root = self._read_mount(mount, top_mount)
        parts: list[bytes] = []
        prefix = suffix = b""
        left = _PATH_MAX - 1
        for step in range(_MAX_STEPS):
            if dentry == top and mount == top_mount:
                break
            parent, name, length, hashed, inline = self._dentry(dentry)
            if step == 0:
                if parent == dentry != mount_root and (made := self._made(dentry)):
                    return made
                suffix = _suffix(dentry, parent, hashed)
                left -= len(suffix)
            if dentry == mount_root:
                if above == mount:
                    prefix = UNREACHABLE
                    break
                dentry, mount = mountpoint, above
                above, mountpoint, mount_root = self._read_mount(mount, top_mount)
            elif parent == dentry:  # the root of the file system, and not of the mount
                if not mount_root:
                    return None
                prefix, parts = UNREACHABLE, []
                break
            else:
                left -= length + 1
                if left < 0:
                    return None
                short = name == dentry + self._inline and length < len(inline)
                parts.append(inline[:length] if short else self._memory.read(name, length))
                dentry = parent
        else:
            return None
        return prefix + b"/" + b"/".join(reversed(parts)) + suffix

    def _read_mount(self, address: int, top: int) -> tuple[int, ...]:
        """(`mnt_parent`, `mnt_mountpoint`, `mnt_root`) of a mount; zeros if it is that of the root, ``top``.

        Recordings of older versions lack the mount of a process's root: nothing above it was needed.
        """
        try:
            return self._mount(address)
        except MemoryFault:
            if address != top:
                raise
            return 0, 0, 0

    def _made(self, dentry: int) -> bytes | None:
        """The name that its file system makes for a dentry without a parent; None if it makes none.

        Only such dentries have one: d_alloc_pseudo() and d_alloc_anon() make them.  Raises `MemoryFault` if
        it cannot be read.
        """
        if self._names is None:
            raise MemoryFault(dentry, "a dentry without a parent, and no types for its name", "virtual")
        return self._names.text(dentry)

    def _suffix_of_root(self, dentry: int) -> bytes:
        """`_suffix` of a process's root directory; recordings of older versions lack it."""
        try:
            parent, _, _, hashed, _ = self._dentry(dentry)
        except MemoryFault:
            return b""
        return _suffix(dentry, parent, hashed)


def _suffix(dentry: int, parent: int, hashed: int) -> bytes:
    """`DELETED` if d_unlinked(): not hashed, and not the root of a file system."""
    return DELETED if not hashed and parent != dentry else b""
