"""From the name of a guest to a system that can be read: everything is found on the way.

Attach to the hypervisor, find the living kernel in guest RAM, make or fetch its symbol table,
compile the readers.  Nothing is asked of the user, and nothing of the guest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from live.arch import architecture
from live.core.errors import GuestGone, NoKernelFound, SymbolsMissing
from live.core.hypervisor import Guest, Notice
from live.core.snapshot import Counters
from live.core.system import Finder, OperatingSystem, Progress, System
from live.core.traps import CodeHit, TrapRequest, TrapSource
from live.hypervisors import registry
from live.watch import modes, systems
from live.watch.asid_stepper import AsidStepper, stepper_of
from live.watch.modes import Choice
from live.watch.stepper import Stepper

_ALIVE_CHECK_S = 0.25
_RUNNING_TRIES, _RUNNING_WAIT_S = 3, 0.02


class Session:
    """One attached guest with a running system; a context manager.

    ``guest`` is what the hypervisor offers, ``machine`` its architecture, ``os`` the system that runs in it.
    """

    def __init__(
        self,
        target: str | Guest | None = None,
        *,
        progress: Progress | None = None,
        systems_wanted: Sequence[Finder] | None = None,
        max_args: int | None = None,
    ) -> None:
        """Attach to ``target``: a name, a pid, a monitor socket, ``SCHEME:TARGET``; None for the only guest.

        A `Guest` is taken as it is, and closed with the session.  ``systems_wanted``: which operating systems
        are searched for; None: all that are known.  ``max_args``: bytes of a command line that are kept;
        None: as many as the system does by itself.  Raises `TargetError` if there is no such guest or it may
        not be read, `NoKernelFound` or `SymbolsMissing` if there is nothing in it that can be introspected.
        """
        self.guest: Guest = registry.attach(target) if target is None or isinstance(target, str) else target
        try:
            self.machine = architecture(self.guest.info.machine)
            wanted = systems.finders() if systems_wanted is None else systems_wanted
            if self.guest.unplaced is not None:
                systems.place(self.guest.unplaced, self.machine, wanted)
            self.os = systems.find(self.guest.memory, self.machine, wanted, progress)
            if max_args is not None:
                self.os.keep(max_args=max_args)
            self.notes = (*self.guest.notes, *self.os.notes, *self._require_running())
        except BaseException:
            self.guest.close()
            raise
        self._alive_at = time.monotonic()

    def _require_running(self) -> Sequence[str]:
        """The kernel that was found is the one that the machine runs; a note where that cannot be told.

        After a reset RAM holds the kernel of the boot before, unharmed, until something is loaded over it.
        Raises `NoKernelFound`.
        """
        registers = self.guest.registers
        if registers is None:
            return self._signs_of_life()
        for _ in range(_RUNNING_TRIES):
            self.guest.memory.refresh()
            if self.os.runs(registers.read(registers.vcpus[0])):
                return ()
            time.sleep(_RUNNING_WAIT_S)
        raise NoKernelFound(
            f"the guest {self.name} does not run the kernel that is in its memory: it was reset, and boots "
            "again, or is in its boot loader; try again in a few seconds"
        )

    def _signs_of_life(self) -> Sequence[str]:
        """Without registers: whether the kernel's clock goes on."""
        if self.os.ticking():
            return ()
        return ("the guest's clock stands still: it is paused, or it was reset and this is the boot before",)

    @property
    def name(self) -> str:
        """The guest's name on this host."""
        return self.guest.info.name

    @property
    def system(self) -> System:
        """Which boot of which host this is."""
        return self.os.system

    def counters(self) -> Counters:
        """The kernel's own counters, now.  Raises `MemoryFault`."""
        return self.os.counters()

    def sleep(self, seconds: float) -> None:
        """Wait; raises `GuestGone` when the guest has ended or was reset meanwhile."""
        time.sleep(seconds)
        now = time.monotonic()
        if now - self._alive_at < _ALIVE_CHECK_S:
            return
        self._alive_at = now
        if not self.guest.alive():
            raise GuestGone(f"the guest {self.name} has ended")
        if self.guest.notices is not None and Notice.RESET in self.guest.notices.take():
            raise GuestGone(f"the guest {self.name} was reset; run pse watch again to follow its new boot")

    def choose(self, mode: str, hold: float = modes.DEFAULT_HOLD) -> Choice:
        """How to be told of what happens: the mode of an offer, "poll", or "auto" for the best there is.

        ``hold``: seconds that a vCPU may be held at most.  Raises `TargetError` if the guest does not offer
        ``mode``.
        """
        try:
            kinds = self.os.points().ways
        except SymbolsMissing:
            # "auto" is left with asid changes; who asks for a mode of functions is told by `request`.
            kinds = frozenset() if mode == modes.AUTO else frozenset({CodeHit})
        return modes.choose(self.guest, self.machine, mode, kinds, hold)

    def stepper(self, choice: Choice, system: OperatingSystem | None = None) -> Stepper | AsidStepper:
        """What takes the steps of a watch in the chosen mode.

        ``system``: the same one over another reader of its memory; None: `os`.  Raises `SymbolsMissing`,
        `MemoryFault`.
        """
        return stepper_of(choice.mode, system or self.os, self.machine)

    def request(self, source: TrapSource) -> TrapRequest:
        """What ``source`` is to be armed with, to trap lifecycle points.

        Raises `SymbolsMissing` if the kernel lacks a function.
        """
        return self.os.points().request(source.prefers)

    def close(self) -> None:
        """Let go of the guest; it runs on as if never watched."""
        self.guest.close()

    def __enter__(self) -> Session:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
