"""Find running QEMU system emulators in /proc, and tell which of them a user means.

Everything comes from the command line of the process (QEMU's manual, "Invocation"), except the path of a
monitor socket that was handed over as a file descriptor, as libvirt does: that one is looked up in
/proc/PID/net/unix by its inode.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from live.core.errors import NoTarget, NotPermitted
from live.core.hypervisor import GuestInfo

PROC = Path("/proc")

_BINARY = re.compile(r"(qemu-system-[\w.-]+|qemu-kvm|kvm|qemu)(\s*\(deleted\))?")
_SYSTEM = re.compile(r"qemu-system-([a-z0-9_]+)")
_UNITS = {"": 1 << 20, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DEFAULT_MEMORY = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuProcess:
    """One running QEMU process, as its command line describes it."""

    pid: int
    """Of the QEMU process, on this host; 0 if it cannot be seen from here (another pid namespace)."""
    uid: int
    """Who runs it; -1 if that is not known."""
    name: str
    """``-name``, or ``qemu-PID`` where there is none."""
    monitors: tuple[str, ...]
    """Monitor sockets, QMP before HMP: absolute paths, or ``HOST:PORT``."""
    memory: int
    """Guest RAM in bytes at start (``-m``)."""
    accel: str
    """``kvm``, ``tcg``, ..., the first one asked for."""
    binary: str
    """Name of the executable."""
    vcpus: int
    """``-smp`` at start."""
    plugin_socket: str | None = None
    """Where our TCG plugin listens, if the guest was started with it."""

    @property
    def info(self) -> GuestInfo:
        """As the contract has it."""
        return GuestInfo(
            name=self.name,
            pid=self.pid,
            machine=machine_of(self.binary),
            memory=self.memory,
            vcpus=self.vcpus,
            accelerator=self.accel,
            control=self.monitors[0] if self.monitors else "",
        )


def machine_of(binary: str) -> str:
    """The architecture that an emulator emulates, by the name of its executable (``qemu-system-ARCH``)."""
    found = _SYSTEM.fullmatch(binary)
    # Without a name of its own (qemu-kvm, kvm) it is the host's, as is one that cannot be seen.
    return found[1] if found else platform.machine()


def parse_options(text: str) -> dict[str, str]:
    """QEMU's ``a,b=c,d=e,,f`` as a dict; the first word, if it is no assignment, has the key ``""``."""
    result: dict[str, str] = {}
    for index, part in enumerate(re.split(r"(?<!,),(?!,)", text)):
        key, equals, value = part.replace(",,", ",").partition("=")
        if not equals and index == 0:
            key, value = "", key
        elif not equals:
            value = "off" if key.startswith("no") else "on"
        result.setdefault(key, value)
    return result


def parse_size(text: str, unit: str = "m") -> int:
    """``512``, ``4G``, ``1.5G`` in bytes; 0 for what is no size.  A bare number counts in ``unit``."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([bkmgt]?)b?", text.strip().lower())
    return int(float(match[1]) * _UNITS[match[2] or unit]) if match else 0


def _arguments(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option without dashes, its value) pairs of a command line."""
    index = 1
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("-"):
            continue
        value = ""
        if index < len(words) and not words[index].startswith("-"):
            value = words[index]
            index += 1
        yield word.lstrip("-"), value


def _address(text: str, cwd: Path) -> str | None:
    """The address in ``unix:PATH,server=on`` or ``tcp:HOST:PORT``; None for what is no socket."""
    kind, _, rest = text.partition(":")
    rest = rest.split(",", 1)[0]
    if kind == "unix" and rest:
        return str(cwd / rest)
    if kind in ("tcp", "telnet") and ":" in rest:
        host, _, port = rest.rpartition(":")
        return f"{host or '127.0.0.1'}:{port}"
    return None


def _chardev_address(options: dict[str, str], cwd: Path, proc: Path) -> str | None:
    if options.get("") != "socket":
        return None
    if "path" in options:
        return str(cwd / options["path"])
    if "port" in options:
        return f"{options.get('host') or '127.0.0.1'}:{options['port']}"
    if "fd" in options:
        return _socket_path(proc, options["fd"])
    return None


def _socket_path(proc: Path, descriptor: str) -> str | None:
    """The path that the listening socket ``descriptor`` of a process is bound to."""
    try:
        inode = os.readlink(proc / "fd" / descriptor).partition("[")[2].rstrip("]")
        lines = (proc / "net" / "unix").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[6] == inode and fields[7].startswith("/"):
            return fields[7]
    return None


def _accelerator(machine: dict[str, str], accels: list[str], kvm: bool) -> str:
    if kvm:
        return "kvm"
    for text in [*accels, machine.get("accel", "")]:
        if text:
            return re.split(r"[:,]", parse_options(text).get("accel") or text)[0]
    return "tcg"


def parse_command_line(  # noqa: PLR0912 - one arm per option, nothing else
    words: Sequence[str], pid: int, uid: int, proc: Path
) -> QemuProcess:
    """What the command line of a QEMU process says.  ``proc`` is its directory in /proc."""
    try:
        cwd = Path(os.readlink(proc / "cwd"))
    except OSError:
        cwd = Path("/")
    name, memory, vcpus, kvm, plugin = "", _DEFAULT_MEMORY, 1, False, None
    machine: dict[str, str] = {}
    accels: list[str] = []
    chardevs: dict[str, str | None] = {}
    by_mode: dict[str, list[str]] = {"control": [], "readline": []}
    mons: list[tuple[str, str]] = []
    for option, value in _arguments(words):
        options = parse_options(value)
        match option:
            case "name":
                name = options.get("guest") or options.get("") or ""
            case "m":
                memory = parse_size(options.get("size") or options.get("") or "") or memory
            case "smp":
                number = options.get("cpus") or options.get("") or ""
                vcpus = int(number) if re.fullmatch(r"[0-9]{1,6}", number) else vcpus
            case "enable-kvm":
                kvm = True
            case "accel":
                accels.append(value)
            case "machine" | "M":
                machine.update(options)
            case "qmp" | "qmp-pretty" | "monitor":
                mode = "readline" if option == "monitor" else "control"
                address = _address(value, cwd)
                if address:
                    by_mode[mode].append(address)
                elif value.startswith("chardev:"):
                    mons.append((value.partition(":")[2].split(",")[0], mode))
            case "chardev":
                chardevs[options.get("id", "")] = _chardev_address(options, cwd, proc)
            case "mon":
                mons.append(
                    (options.get("chardev") or options.get("") or "", options.get("mode", "readline"))
                )
            case "plugin":
                # Told from other plugins by its name (live.hypervisors.qemu.plugin.build).
                file = os.path.basename(options.get("file") or options.get("") or "")
                if file.startswith("pse-trap") and "socket" in options:
                    plugin = str(cwd / options["socket"])
            case _:
                pass
    for chardev, mode in mons:
        address = chardevs.get(chardev)
        if address:
            by_mode.setdefault(mode, []).append(address)
    return QemuProcess(
        pid=pid,
        uid=uid,
        name=name or f"qemu-{pid}",
        monitors=tuple(dict.fromkeys(by_mode["control"] + by_mode["readline"])),
        memory=memory,
        accel=_accelerator(machine, accels, kvm),
        binary=os.path.basename(words[0]),
        vcpus=vcpus,
        plugin_socket=plugin,
    )


def read_guest(pid: int, proc: Path = PROC) -> QemuProcess | None:
    """The QEMU process ``pid``, or None if it is none, or gone, or already dead."""
    directory = proc / str(pid)
    try:
        words = (directory / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
        uid = directory.stat().st_uid
    except OSError:
        return None
    if not words or not _BINARY.fullmatch(os.path.basename(words[0])):
        return None
    return parse_command_line(words, pid, uid, directory)


def list_guests(proc: Path = PROC) -> list[QemuProcess]:
    """Every running QEMU system emulator that this process can see, by pid."""
    pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())
    guests = (read_guest(pid, proc) for pid in pids)
    return [guest for guest in guests if guest is not None]


def _listing(guests: Sequence[QemuProcess]) -> str:
    return ", ".join(f"{guest.name} (pid {guest.pid})" for guest in guests)


def resolve(target: str | None, proc: Path = PROC) -> QemuProcess:
    """The guest that ``target`` names: a monitor socket, a pid, a VM name; None for the only one there is.

    Raises `NoTarget` (none, several, or no such) and `NotPermitted` (a socket in a directory that we may
    not search).
    """
    guests = list_guests(proc)
    if target is None:
        if len(guests) == 1:
            return guests[0]
        if not guests:
            raise NoTarget("No QEMU guest is running on this machine; start one, or name its monitor socket.")
        raise NoTarget(f"Several guests are running: {_listing(guests)}; name one of them.")
    by_name = [guest for guest in guests if target in (guest.name, str(guest.pid))]
    if len(by_name) == 1:
        return by_name[0]
    if by_name:
        raise NoTarget(f"Several guests are called {target}: {_listing(by_name)}; give the pid of one.")
    if "/" in target or ":" in target or os.path.exists(target):
        return _resolve_socket(target, guests)
    others = f"; running: {_listing(guests)}" if guests else ", and no QEMU guest is running"
    raise NoTarget(f"No guest is called {target!r}{others}; give a name, a pid or a monitor socket.")


def _resolve_socket(target: str, guests: Sequence[QemuProcess]) -> QemuProcess:
    path = target.removeprefix("unix:")
    is_file = "/" in path or ":" not in path
    absolute = os.path.abspath(path) if is_file else path
    for guest in guests:
        for monitor in guest.monitors:
            if absolute == monitor or (is_file and _same_file(absolute, monitor)):
                rest = tuple(other for other in guest.monitors if other != monitor)
                return _with_monitors(guest, (absolute, *rest))
    if is_file:
        try:
            mode = os.stat(absolute).st_mode
        except PermissionError:
            raise NotPermitted(
                f"Permission to reach {path} is denied; run as the user that owns the guest, or as root."
            ) from None
        except OSError:
            raise NoTarget(
                f"There is no monitor socket at {path}; `pse vms` lists the running guests."
            ) from None
        if mode & 0o170000 != 0o140000:
            raise NoTarget(f"{path} is not a socket; give the guest's monitor socket, its pid or its name.")
    owner = _peer(absolute, is_file)
    for guest in guests:
        if guest.pid == owner:
            return _with_monitors(guest, (absolute, *guest.monitors))
    if owner is not None:  # whether that is QEMU, its monitor tells
        return QemuProcess(
            pid=0,
            uid=-1,
            name=os.path.basename(absolute),
            monitors=(absolute,),
            memory=0,
            accel="unknown",
            binary="",
            vcpus=0,
        )
    raise NoTarget(f"No running QEMU guest has {path} as its monitor; `pse vms` lists the running guests.")


def _with_monitors(guest: QemuProcess, monitors: tuple[str, ...]) -> QemuProcess:
    return replace(guest, monitors=monitors)


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _peer(address: str, is_file: bool) -> int | None:
    """The process that listens on a unix socket, by SO_PEERCRED; None where it cannot be told."""
    if not is_file:
        return None
    import socket  # noqa: PLC0415 - only this rare path opens one
    import struct  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            return None
    return int(struct.unpack("3i", credentials)[0])
