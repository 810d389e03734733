"""A running QEMU guest: its memory, monitor and registers, and whether it still lives."""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from live.core.errors import GuestGone, NoTarget, NotPermitted, TargetError
from live.core.hypervisor import Guest, GuestInfo, Notice, TrapOffer
from live.core.machine import Registers
from live.core.traps import VcpuIndex
from live.hypervisors.host.memory import MappedMemory, ProcessMemory
from live.hypervisors.process import guest as by_process
from live.hypervisors.qemu import discover
from live.hypervisors.qemu.memory.host import open_memory
from live.hypervisors.qemu.memory.stub import StubMemory, open_stub_memory
from live.hypervisors.qemu.monitor.client import Monitor, connect
from live.hypervisors.qemu.monitor.pause import Pause
from live.hypervisors.qemu.offers import offers_of

_VALUES = re.compile(r"\b([A-Z][A-Z0-9]{0,4}) *= *([0-9a-f]+)((?: [0-9a-f]+)*)")
_NOTICES = {
    "RESET": Notice.RESET,
    "SHUTDOWN": Notice.ENDED,
    "STOP": Notice.STOPPED,
    "RESUME": Notice.RESUMED,
}
"""QMP events; what the human monitor would have to be asked for is not noticed (qapi/run-state.json)."""

QemuMemory = MappedMemory | ProcessMemory | StubMemory


class QemuRegisters:
    """Registers by the monitor's ``info registers``.  About 0.7 ms; does not stop the guest."""

    def __init__(self, monitor: Monitor) -> None:
        """Ask which vCPUs there are."""
        self._monitor = monitor
        numbers = re.findall(r"CPU #(\d+):", monitor.hmp("info cpus"))
        self.vcpus: Sequence[VcpuIndex] = tuple(VcpuIndex(int(number)) for number in numbers)

    def read(self, vcpu: VcpuIndex) -> Registers:
        """See `live.core.hypervisor.RegisterReader.read`."""
        self._monitor.hmp(f"cpu {vcpu}")
        return parse_registers(self._monitor.hmp("info registers"))


class QemuGuest:
    """An attached guest; a context manager.

    Attaching and reading do not stop the guest, unless its memory can be had through the gdb stub only.
    """

    unplaced = None

    def __init__(
        self, process: discover.QemuProcess, monitor: Monitor, memory: QemuMemory, pidfd: int, pause: Pause
    ) -> None:
        """Use `attach`.  Owns all of them; ``pidfd`` is -1 where QEMU's process cannot be seen."""
        self.process = process
        self.info: GuestInfo = process.info
        self.notes: Sequence[str] = ()
        self.monitor = monitor
        self.memory = memory
        self._pidfd, self._pause, self._closed = pidfd, pause, False
        self.version = monitor.version
        """QEMU's version, ``"10.0.2"``."""
        self.registers = QemuRegisters(monitor)
        self.offers: Sequence[TrapOffer] = offers_of(self)

    @property
    def name(self) -> str:
        """``-name``."""
        return self.info.name

    @property
    def uid(self) -> int:
        """Who runs QEMU; -1 if that is not known."""
        return self.process.uid

    @property
    def accelerator(self) -> str:
        """``kvm``, ``tcg``, ..."""
        return self.process.accel

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """vCPUs there were when attached."""
        return self.registers.vcpus

    @property
    def pauses(self) -> QemuGuest:
        """Itself: `paused`, `standing`."""
        return self

    @property
    def notices(self) -> QemuGuest:
        """Itself: `take`."""
        return self

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
        """See `live.core.hypervisor.Pauses.paused`."""
        return self.status() != "running"

    def standing(self, limit: float | None = None) -> AbstractContextManager[bool]:
        """See `live.core.hypervisor.Pauses.standing`."""
        return self._pause.standing(limit)

    def take(self) -> Sequence[Notice]:
        """See `live.core.hypervisor.Notices.take`; none over the human monitor."""
        return [_NOTICES[name] for name in self.monitor.events() if name in _NOTICES]

    def status(self) -> str:
        """``running``, ``paused``, ``shutdown``, ...  Raises `GuestGone` when QEMU has ended."""
        try:
            return self.monitor.status()
        except GuestGone:
            raise self.gone() from None

    def keep_memory_only(self) -> None:
        """Leave the monitor to others, where memory is read without it; nothing but memory works then."""
        if not isinstance(self.memory, StubMemory):
            self.monitor.close()

    def gone(self) -> GuestGone:
        """The error to raise when this guest has ended."""
        process = f" (QEMU pid {self.info.pid})" if self.info.pid else ""
        return GuestGone(f"The guest {self.info.name}{process} has ended; start it to watch again.")

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
    """QEMU's ``info registers``: values by lower-case name.

    Where a line gives a table (base, limit) or a segment (selector, base, limit, flags), it is the base, as
    ``NAME_base``.
    """
    result: dict[str, int] = {}
    for name, value, more in _VALUES.findall(text):
        words = [value, *more.split()]
        if len(words) == 1:
            result[name.lower()] = int(value, 16)
        else:
            result[f"{name.lower()}_base"] = int(words[0 if len(words) == 2 else 1], 16)
    return result


def attach(target: str | None = None, *, allow_mapping: bool = True) -> Guest:
    """Attach to a running guest: a monitor socket, a pid, a VM name, or None for the only one there is.

    A guest whose monitor somebody else has, or that has none, is read by its process's memory alone.
    ``allow_mapping=False`` reads through the process even where RAM could be mapped (for comparing).
    Raises `NoTarget`, `NotPermitted`, `TargetError` and `GuestGone`, each a sentence for the user.
    """
    process = discover.resolve(target)
    try:
        monitor = _first_free(process)
    except TargetError as busy:
        return _by_memory_alone(process, busy)
    return attach_monitor(process, monitor, allow_mapping=allow_mapping)


def attach_monitor(
    process: discover.QemuProcess, monitor: Monitor, *, allow_mapping: bool = True
) -> QemuGuest:
    """The guest behind an open monitor, which it owns from here on.  See `attach`."""
    with contextlib.ExitStack() as opened:
        opened.callback(monitor.close)
        pidfd = -1
        if process.pid:
            try:
                pidfd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                raise GuestGone(f"The QEMU process {process.pid} has ended; start the guest again.") from None
            opened.callback(os.close, pidfd)
        else:
            process = replace(process, name=monitor.hmp("info name").strip() or process.name)
        pause = Pause(monitor)
        opened.callback(pause.close)
        memory = _open_memory(monitor, process, pause, allow_mapping=allow_mapping)
        opened.callback(memory.close)
        guest = QemuGuest(process, monitor, memory, pidfd, pause)
        opened.pop_all()
    return guest


def _by_memory_alone(process: discover.QemuProcess, why: TargetError) -> Guest:
    """What is left where no monitor answers.  Raises ``why`` if that cannot be had either."""
    if not process.pid:
        raise why
    note = f"its memory alone is read, and it can be polled only: {why}"
    try:
        guest = by_process.attach(str(process.pid))
    except (TargetError, GuestGone):
        raise why from None
    guest.info = replace(process.info, control="")
    guest.notes = (note, *guest.notes)
    return guest


def _open_memory(
    monitor: Monitor, process: discover.QemuProcess, pause: Pause, *, allow_mapping: bool
) -> QemuMemory:
    """The best reader: the gdb stub if the operating system does not let us read QEMU's process."""
    if not process.pid:
        return open_stub_memory(monitor, process, pause, "its process cannot be seen from here")
    try:
        return open_memory(monitor, process.pid, allow_mapping=allow_mapping)
    except NotPermitted as refused:
        try:
            return open_stub_memory(
                monitor, process, pause, f"the memory of process {process.pid} may not be read"
            )
        except TargetError as error:
            raise NotPermitted(f"{refused} Nor can it be had through the gdb stub: {error}") from None


def _first_free(process: discover.QemuProcess) -> Monitor:
    """The first of the guest's monitors that answers; the first one's error if none does."""
    failure: TargetError | GuestGone = NoTarget(
        f"The guest {process.name} (pid {process.pid}) has no monitor socket; start it with "
        "-qmp unix:PATH,server,nowait."
    )
    for address in process.monitors:
        try:
            return connect(address)
        except (TargetError, GuestGone) as error:
            failure = error
    raise failure
