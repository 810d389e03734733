"""The contract on real guests of QEMU: by both kinds of traps, and by memory alone."""

from __future__ import annotations

import pytest

from live.hypervisors.qemu.entry import QEMU
from live.testing import GuestContract, Subject
from tests.contract import lab
from tests.guest.fixtures import Boot
from tests.hypervisors import sockets


class TestQemu(GuestContract):
    """Memory that is mapped, registers, pauses, notices, both offers."""

    modes = ("plugin", "gdbstub")

    @pytest.fixture
    def subject(self, boot: Boot) -> Subject:
        guest = boot(plugins=(sockets.plugin("contract"),))
        return lab.trapped(guest, lambda: QEMU.attach(str(guest.pid)))

    @pytest.fixture
    def mortal(self, boot: Boot) -> Subject:
        guest = boot(fresh=True, plugins=(sockets.plugin("mortal"),))
        return lab.dying(guest, lambda: QEMU.attach(str(guest.pid)))
