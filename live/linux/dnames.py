"""Names that a file system makes on demand, for files that are in no directory: `dentry_operations.d_dname`.

A memfd has one, and so have pipes, sockets and the like.  The function is not run: it is recognised by its
address, and what it writes is known.
"""

from __future__ import annotations

from collections.abc import Callable

from live.core.errors import MemoryFault
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

_MOST = 255  # NAME_MAX: what d_alloc_pseudo() is given is no longer


class DynamicNames:
    """Reads the name of a dentry that has no path."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Compile the readers.  Raises `SymbolsMissing`."""
        unpacker = kernel.unpacker
        self._memory = kernel.memory
        self._dentry = unpacker(
            "dentry", (field("d_op"), field("d_inode"), field("d_name.name"), field("d_name.len"))
        )
        self._dname = unpacker("dentry_operations", (field("d_dname"),))
        self._inode = unpacker("inode", (field("i_ino"), field("i_private")))
        self._namespace = unpacker("ns_common", (field("ops"),))
        self._operations = unpacker("proc_ns_operations", (field("name"),))
        makers: dict[str, Callable[[int, bytes], bytes]] = {
            "simple_dname": lambda _, name: b"/" + name + b" (deleted)",
            "anon_inodefs_dname": lambda _, name: b"anon_inode:" + name,
            "pidfs_dname": lambda *_: b"anon_inode:[pidfd]",
            "pipefs_dname": lambda inode, _: self._numbered(b"pipe", inode),
            "sockfs_dname": lambda inode, _: self._numbered(b"socket", inode),
            "ns_dname": lambda inode, _: self._numbered(self._kind(inode), inode),
        }
        self._makers = {kernel.symbol(name): make for name, make in makers.items()}

    def text(self, dentry: int) -> bytes | None:
        """The name of the `struct dentry` at a guest-virtual address; None if its file system makes none.

        Raises `MemoryFault` if it cannot be read, or is made by a function that is not known here.
        """
        operations, inode, at, length = self._dentry(dentry)
        if not operations or not (function := self._dname(operations)[0]):
            return None
        make = self._makers.get(function)
        if make is None:
            raise MemoryFault(function, "an unknown d_dname function", "virtual")
        if length > _MOST:
            raise MemoryFault(at, f"a name of {length} bytes is not believed", "virtual")
        return make(inode, self._memory.read(at, length))

    def _numbered(self, kind: bytes, inode: int) -> bytes:
        return b"%s:[%d]" % (kind, self._inode(inode)[0])

    def _kind(self, inode: int) -> bytes:
        """The name of the kind of a namespace, from its inode: `ns_common.ops->name`."""
        (operations,) = self._namespace(self._inode(inode)[1])
        return self._memory.string(self._operations(operations)[0], 64)
