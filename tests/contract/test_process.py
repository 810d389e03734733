"""The contract on the memory of a process, whatever VMM it is."""

from __future__ import annotations

import pytest

from live.hypervisors.process import PROCESS
from live.testing import GuestContract, Subject
from tests.contract import lab
from tests.guest.fixtures import Boot


class TestProcess(GuestContract):
    """RAM that is mapped."""

    @pytest.fixture
    def subject(self, boot: Boot) -> Subject:
        guest = boot()
        return lab.polled(guest, lambda: PROCESS.attach(str(guest.pid)))

    @pytest.fixture
    def mortal(self, boot: Boot) -> Subject:
        guest = boot(fresh=True)
        return lab.dying(guest, lambda: PROCESS.attach(str(guest.pid)), functions=False)
