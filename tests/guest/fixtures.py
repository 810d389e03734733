"""pytest fixtures of the lab: ``boot(kernel="6.1", cpus=2)`` gives a running guest.

There is no skip: where no guest can be booted, the tests that need one fail, and say why in one sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from .errors import GuestError
from .guest import Guest
from .spec import GuestSpec

# Guests that are kept for the next test that wants the same; the one that was not used for longest makes
# room.
_KEPT = 4


class Boot(Protocol):
    """Type of the ``boot`` fixture."""

    def __call__(self, spec: GuestSpec | None = None, *, fresh: bool = False, **options: Any) -> Guest: ...


class Pool:
    """Running guests by spec."""

    def __init__(self) -> None:
        self._guests: dict[GuestSpec, Guest] = {}

    def get(self, spec: GuestSpec) -> Guest:
        """A running guest of that spec: the one that an earlier test has left, if it is still fit."""
        guest = self._guests.pop(spec, None)
        if guest is not None and not _fit(guest):
            guest.close()
            guest = None
        if guest is None:
            while len(self._guests) >= _KEPT:
                self._guests.pop(next(iter(self._guests))).close()
            guest = Guest(spec).__enter__()
        self._guests[spec] = guest
        return guest

    def close(self) -> None:
        for guest in self._guests.values():
            guest.close()
        self._guests.clear()


def _fit(guest: Guest) -> bool:
    """Tell whether a guest still takes commands; one that a test has left paused is let go on."""
    with contextlib.suppress(GuestError):
        guest.cont()
        return guest.run(["true"], timeout=20).status == 0
    return False


@pytest.fixture(scope="session")
def guest_pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def boot(guest_pool: Pool) -> Iterator[Boot]:
    """Boot a guest: ``boot(GuestSpec(...))`` or ``boot(kernel=..., cpus=...)``.

    Tests that ask for equal specs share one running guest; ``fresh=True`` gives one that nobody else has had,
    or will.
    """
    with contextlib.ExitStack() as own:

        def start(spec: GuestSpec | None = None, *, fresh: bool = False, **options: Any) -> Guest:
            spec = spec or GuestSpec(**options)
            if fresh or spec.paused:
                return own.enter_context(Guest(spec))
            return guest_pool.get(spec)

        yield start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever boots a guest is marked so: ``-m "not guest"`` runs the rest."""
    for item in items:
        if "boot" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.guest)
