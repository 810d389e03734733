"""What a process may do, and on whose behalf: ids in its namespace, capabilities, seccomp, audit ids, tty.

=====================  ==================================  ==============================================
field                  where                               as in the guest's /proc/PID
=====================  ==================================  ==============================================
capabilities           cred.cap_*                          status: CapEff, CapPrm, CapInh, CapBnd, CapAmb
no_new_privs           task_struct.atomic_flags, bit 0     status: NoNewPrivs (PFA_NO_NEW_PRIVS)
seccomp                task_struct.seccomp.mode            status: Seccomp
login_uid, session_id  task_struct.loginuid, .sessionid    loginuid, sessionid; (u32)-1 is not set
tty                    signal_struct.tty                   stat, 7th: tty_devnum() of drivers/tty/tty_io.c
ids in the namespace   user_namespace.uid_map, .gid_map    what getuid() gives: from_kuid_munged()
=====================  ==================================  ==============================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Capabilities, Security
from live.linux.kernel import LinuxKernel
from live.linux.layout import Field, field

UNSET = 0xFFFF_FFFF
"""AUDIT_UID_UNSET, AUDIT_SID_UNSET; INVALID_UID."""
OVERFLOW = 65534
"""DEFAULT_OVERFLOWUID: what a process is told of an id that its namespace does not have."""
_NO_NEW_PRIVS = 1
_EXTENTS = 5  # UID_GID_MAP_MAX_BASE_EXTENTS
_MAX_EXTENTS = 340  # UID_GID_MAP_MAX_EXTENTS
_EXTENT_SIZE = 12  # struct uid_gid_extent: first, lower_first, count
_CAPABILITIES = ("effective", "permitted", "inheritable", "bset", "ambient")

Reader = Callable[[int], tuple[Any, ...]]


class SecurityReader:
    """Reads a `Security`; what a kernel does not have is None."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Compile the readers."""
        self._kernel, self._memory = kernel, kernel.memory
        self._task = self._reader("task_struct", field("atomic_flags"), field("seccomp.mode"))
        self._audit = self._reader("task_struct", field("loginuid.val", "loginuid"), field("sessionid"))
        self._cred = self._reader(
            "cred", *(field(f"cap_{name}.val", f"cap_{name}.cap") for name in _CAPABILITIES)
        )
        self._tty = self._reader("signal_struct", field("tty"))
        self._of_tty = self._reader("tty_struct", field("driver"), field("index"))
        self._driver = self._reader("tty_driver", field("major"), field("minor_start"))
        symbols = kernel.symbols
        self._maps = {name: symbols.member("user_namespace", f"{name}_map") for name in ("uid", "gid")}
        self._count = symbols.member("uid_gid_map", "nr_extents")
        self._extents = symbols.member("uid_gid_map", "extent")
        self._forward = symbols.member("uid_gid_map", "forward")
        self._first = kernel.symbol("init_user_ns")

    def _reader(self, kind: str, *members: Field) -> Reader | None:
        try:
            return self._kernel.unpacker(kind, members)
        except SymbolsMissing:
            return None

    def read(
        self, task: int, cred: int, signal: int, ids: Sequence[int | None], namespace: int | None
    ) -> Security:
        """Of the task, credentials and `signal_struct` at these guest-virtual addresses; 0: not there.

        ``ids``: the host's uid, gid, euid, egid; ``namespace``: address of the `user_namespace`: both of the
        same credentials, read before.
        """
        flags, mode = _values(self._task, task, 2)
        login, session = _values(self._audit, task, 2)
        capabilities = _values(self._cred, cred, len(_CAPABILITIES))
        uid, gid, euid, egid = ids
        return Security(
            capabilities=None if None in capabilities else Capabilities(*map(_mask, capabilities)),
            no_new_privs=None if flags is None else bool(flags & _NO_NEW_PRIVS),
            seccomp=mode,
            login_uid=None if login == UNSET else login,
            session_id=None if session == UNSET else session,
            tty=self._device(signal),
            ns_uid=self._inside(namespace, "uid", uid),
            ns_gid=self._inside(namespace, "gid", gid),
            ns_euid=self._inside(namespace, "uid", euid),
            ns_egid=self._inside(namespace, "gid", egid),
        )

    def _device(self, signal: int) -> tuple[int, int] | None:
        """(major, minor) of the controlling terminal."""
        (tty,) = _values(self._tty, signal, 1)
        if not tty:
            return None
        driver, index = _values(self._of_tty, tty, 2)
        major, first = _values(self._driver, driver or 0, 2)
        return None if major is None or index is None else (major, first + index)

    def _inside(self, namespace: int | None, kind: str, number: int | None) -> int | None:
        """An id as the process itself sees it; that of nobody where its namespace does not have it."""
        if not namespace or number is None:
            return None
        if namespace == self._first:
            return number
        try:
            return self._mapped(namespace, kind, number)
        except MemoryFault:
            return None

    def _mapped(self, namespace: int, kind: str, number: int) -> int | None:
        """map_id_up() of kernel/user_namespace.c."""
        where, count, extents, forward = self._maps[kind], self._count, self._extents, self._forward
        if where is None or count is None or extents is None or forward is None:
            return None
        at = namespace + where.offset
        many = self._memory.u32(at + count.offset)
        if many > _MAX_EXTENTS:
            return None
        inline = many <= _EXTENTS
        start = at + extents.offset if inline else self._memory.u64(at + forward.offset)
        raw = self._memory.read(start, many * _EXTENT_SIZE) if many else b""
        for first, lower, length in _extents(raw):
            if lower <= number < lower + length:
                return first + number - lower
        return OVERFLOW


def _mask(value: int | bytes) -> int:
    """A `kernel_cap_t`: an array of two u32 before 6.3 (kernel commit f122a08b197d)."""
    return value if isinstance(value, int) else int.from_bytes(value, "little")


def _extents(raw: bytes) -> list[tuple[int, int, int]]:
    numbers = memoryview(raw).cast("I").tolist()
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def _values(read: Reader | None, address: int, count: int) -> tuple[Any, ...]:
    if read is None or not address:
        return (None,) * count
    try:
        return read(address)
    except MemoryFault:
        return (None,) * count
