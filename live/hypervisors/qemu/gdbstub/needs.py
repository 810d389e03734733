"""What the gdb stub needs of a guest and its monitor, and nothing else of them.

Whoever has a guest passes it; this package imports nothing of the guest's, so that there is no circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from live.core.errors import GuestGone
from live.core.traps import VcpuIndex


class Hmp(Protocol):
    """A monitor that takes human monitor commands."""

    def hmp(self, command: str) -> str:
        """The output of a command.  Raises `GuestGone`, `TargetError`."""


class Owner(Protocol):
    """Whose stub it is."""

    @property
    def name(self) -> str:
        """The guest's, for messages."""

    @property
    def uid(self) -> int:
        """The user that QEMU runs as; -1 if that is not known."""


class StubGuest(Owner, Protocol):
    """A guest whose vCPUs are to be trapped."""

    @property
    def accelerator(self) -> str:
        """``tcg``, ``kvm``, ..."""

    @property
    def vcpus(self) -> Sequence[VcpuIndex]:
        """All that there are; the stub calls each by its number plus 1."""

    @property
    def monitor(self) -> Hmp:
        """Starts and ends the stub."""

    def status(self) -> str:
        """``running``, ``paused``, ``debug``, ..., as ``info status`` has it.  Raises `GuestGone`."""

    def alive(self) -> bool:
        """Whether it has not ended."""

    def gone(self) -> GuestGone:
        """The error to raise when it has."""
