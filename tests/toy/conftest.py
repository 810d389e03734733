"""The toys are known for the time of a test."""

import pytest

import live.arch
import live.watch.systems


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that an architecture takes, and the one that an operating system does."""
    machines = {**live.arch.ARCHITECTURES, "toy": "tests.toy.machine:TOY"}
    monkeypatch.setattr(live.arch, "ARCHITECTURES", machines)
    found = {**live.watch.systems.SYSTEMS, "toy": "tests.toy.system:TOY"}
    monkeypatch.setattr(live.watch.systems, "SYSTEMS", found)
