"""The package's own test: the contract that pse ships."""

from __future__ import annotations

import pytest
from pse_example.hypervisor import EXAMPLE

from live.testing import GuestContract, Subject
from live.watch import systems


class TestExample(GuestContract):
    """Run with $PSE_EXAMPLE naming a directory that has one guest in it."""

    @pytest.fixture
    def subject(self) -> Subject:
        """A guest that stands still: nothing can be made to happen in it."""
        return Subject(open=lambda: EXAMPLE.attach(None), systems=systems.finders())
