"""A running QEMU guest: its memory, monitor and registers, and whether it still lives."""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from live.core.errors import GuestGone, NoTarget, NotPermitted, TargetError
from live.core.traps import VcpuIndex
from live.hypervisors.qemu import discover
from live.hypervisors.qemu.memory.host import MappedMemory, ProcessMemory, open_memory
from live.hypervisors.qemu.memory.stub import StubMemory, open_stub_memory
from live.hypervisors.qemu.monitor.client import Monitor, connect
from live.hypervisors.qemu.monitor.pause import Pause

_REGISTER = re.compile(r"\b([A-Z][A-Z0-9]{1,4}) *= *([0-9a-f]+)((?: [0-9a-f]+)*)")
_GENERAL = re.compile(r"r[abcd]x|r[sd]i|r[bsi]p|r\d{1,2}|cr[0-8]|efer")
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")

QemuMemory = MappedMemory | ProcessMemory | StubMemory


class QemuGuest:
    """An attached guest; a context manager.

    Attaching and reading do not stop the guest, unless its memory can be had through the gdb stub only.
    """

    def __init__(
        self, info: discover.GuestInfo, monitor: Monitor, memory: QemuMemory, pidfd: int, pause: Pause
    ) -> None:
        """Use `attach`.  Owns all of them; ``pidfd`` is -1 where QEMU's process cannot be seen."""
        self.info = info
        self.monitor = monitor
        self.memory = memory
        self._pidfd, self._pause, self._closed = pidfd, pause, False
        self._events: list[str] = []
        self.version = monitor.version
        """QEMU's version, ``"10.0.2"``."""
        self.vcpus: Sequence[VcpuIndex] = self._list_vcpus()
        """vCPUs there were when attached."""

    def _list_vcpus(self) -> tuple[VcpuIndex, ...]:
        text = self.monitor.hmp("info cpus")
        return tuple(VcpuIndex(int(number)) for number in re.findall(r"CPU #(\d+):", text))

    def alive(self) -> bool:
        """Whether the QEMU process still runs.  No system call but one poll, if the process can be seen."""
        if self._closed:
            return False
        if self._pidfd < 0:
            try:
                return bool(self.monitor.status())
            except GuestGone:
                return False
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return not poller.poll(0)

    def paused(self) -> bool:
        """Whether the guest's vCPUs are stopped (by whomever).  Raises `GuestGone`."""
        return self.status() != "running"

    def status(self) -> str:
        """``running``, ``paused``, ``shutdown``, ...  Raises `GuestGone` when QEMU has ended."""
        try:
            return self.monitor.status()
        except GuestGone:
            raise self.gone() from None

    def pause(self, limit: float | None = None) -> AbstractContextManager[bool]:
        """The guest stands still within; it goes on behind it, even if we are killed, unless it stood before.

        See `live.hypervisors.qemu.monitor.pause.Pause.standing`.
        """
        return self._pause.standing(limit)

    def leave_monitor(self) -> None:
        """Leave the monitor to others, where memory is read without it; nothing but memory works then."""
        if not isinstance(self.memory, StubMemory):
            self.monitor.close()

    def gone(self) -> GuestGone:
        """The error to raise when this guest has ended."""
        process = f" (QEMU pid {self.info.pid})" if self.info.pid else ""
        return GuestGone(f"The guest {self.info.name}{process} has ended; start it to watch again.")

    def events(self) -> list[str]:
        """Monitor events since the last call (``RESET``, ``SHUTDOWN``, ``STOP``, ...); none over HMP."""
        return self.monitor.events()

    def registers(self, vcpu: VcpuIndex) -> Mapping[str, int]:
        """See `live.core.traps.RegisterReader`.  About 0.7 ms; does not stop the guest."""
        self.monitor.hmp(f"cpu {vcpu}")
        return parse_registers(self.monitor.hmp("info registers"))

    def close(self) -> None:
        """Let go of memory, monitor and process.  The guest runs on; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._pause.close()
        self.memory.close()
        self.monitor.close()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __enter__(self) -> QemuGuest:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def parse_registers(text: str) -> dict[str, int]:
    """QEMU's ``info registers`` by name: general and control registers, segment and table bases."""
    result: dict[str, int] = {}
    for name, value, rest in _REGISTER.findall(text):
        key = name.lower()
        if key in _SEGMENTS and rest:
            result[f"{key}_base"] = int(rest.split()[0], 16)
        elif key in ("gdt", "idt"):
            result[f"{key}_base"] = int(value, 16)
        elif _GENERAL.fullmatch(key):
            result[key] = int(value, 16)
    return result


def attach(target: str | None = None, *, allow_mapping: bool = True) -> QemuGuest:
    """Attach to a running guest: a monitor socket, a pid, a VM name, or None for the only one there is.

    ``allow_mapping=False`` reads through the process even where RAM could be mapped (for comparing).
    Raises `NoTarget`, `NotPermitted`, `TargetError` (its monitor is in use, or it is no x86-64 PC) and
    `GuestGone`, each a sentence for the user.
    """
    info = discover.resolve(target)
    with contextlib.ExitStack() as opened:
        monitor = _first_free(info)
        opened.callback(monitor.close)
        pidfd = -1
        if info.pid:
            try:
                pidfd = os.pidfd_open(info.pid)
            except ProcessLookupError:
                raise GuestGone(f"The QEMU process {info.pid} has ended; start the guest again.") from None
            opened.callback(os.close, pidfd)
        else:
            info = replace(info, name=monitor.hmp("info name").strip() or info.name)
        pause = Pause(monitor)
        opened.callback(pause.close)
        memory = _open_memory(monitor, info, pause, allow_mapping=allow_mapping)
        opened.callback(memory.close)
        guest = QemuGuest(info, monitor, memory, pidfd, pause)
        opened.pop_all()
    return guest


def _open_memory(
    monitor: Monitor, info: discover.GuestInfo, pause: Pause, *, allow_mapping: bool
) -> QemuMemory:
    """The best reader: the gdb stub if the operating system does not let us read QEMU's process."""
    if not info.pid:
        return open_stub_memory(monitor, info, pause, "its process cannot be seen from here")
    try:
        return open_memory(monitor, info.pid, allow_mapping=allow_mapping)
    except NotPermitted as refused:
        try:
            return open_stub_memory(monitor, info, pause, f"the memory of process {info.pid} may not be read")
        except TargetError as error:
            raise NotPermitted(f"{refused} Nor can it be had through the gdb stub: {error}") from None


def _first_free(info: discover.GuestInfo) -> Monitor:
    """The first of the guest's monitors that answers; the first one's error if none does."""
    failure: TargetError | GuestGone = NoTarget(
        f"The guest {info.name} (pid {info.pid}) has no monitor socket; start it with "
        "-qmp unix:PATH,server,nowait."
    )
    for address in info.monitors:
        try:
            return connect(address)
        except (TargetError, GuestGone) as error:
            failure = error
    raise failure
