"""The contract on real guests of QEMU: by both kinds of traps, and by memory alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from live.hypervisors.qemu.entry import QEMU
from live.testing import GuestContract, Subject
from tests.contract import lab
from tests.guest import Guest, GuestSpec
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


@pytest.fixture(scope="module")
def silent() -> Iterator[Guest]:
    """A guest without any monitor; the pool cannot keep one."""
    with Guest(GuestSpec(monitor=False, ram="private")) as guest:
        yield guest


@pytest.mark.guest
class TestQemuByMemoryAlone(GuestContract):
    """No monitor, so it can be polled only; its RAM is private to the process, and has to be placed."""

    @pytest.fixture
    def subject(self, silent: Guest) -> Subject:
        return lab.polled(silent, lambda: QEMU.attach(str(silent.pid)))
