"""Checks of what happens when the guest ends; each of them ends one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from live.core.errors import GuestGone, PseError
from live.core.traps import CodeHit, TrapRequest
from live.testing.capabilities import CapabilityContract, eventually, needed
from live.testing.sentences import check_error
from live.testing.subject import Subject
from live.testing.traps import arrives, begin, code_of, opened

_SOON_S = 0.3


class EndContract(CapabilityContract):
    """Override the fixture `mortal` where a guest that has ended cannot be opened again."""

    @pytest.fixture
    def mortal(self, subject: Subject) -> Subject:
        """A guest that may be ended, and that no other check needs afterwards."""
        return subject

    def test_the_guest_ends(self, mortal: Subject) -> None:
        """All that needs it raises `GuestGone`; memory that is mapped may still be read; it can be closed."""
        end = needed(mortal.end, "the subject cannot end its guest")
        guest = mortal.open()
        try:
            at = guest.memory.segments[0].start
            end()
            eventually(lambda: not guest.alive(), mortal.patience, "the guest is not alive any more")
            check_error(guest.gone())
            with contextlib.suppress(GuestGone):
                assert len(guest.memory.read(at, 8)) == 8
            registers, pauses = guest.registers, guest.pauses
            if registers is not None:
                _gone(lambda: registers.read(registers.vcpus[0]))
            if pauses is not None:
                _gone(pauses.paused)
                _gone(lambda: pauses.standing().__enter__())
            if guest.notices is not None:
                list(guest.notices.take())
            for offer in guest.offers:
                # A source that is refused whether the guest lives or not may say that instead.
                with pytest.raises(PseError) as caught:
                    opened(guest, offer.mode, frozenset({CodeHit}), mortal.hold)
                check_error(caught.value)
        finally:
            guest.close()
        guest.close()
        assert not guest.alive()

    def test_the_guest_ends_while_its_traps_are_waited_for(self, mortal: Subject, mode: str) -> None:
        """`wait` raises `GuestGone`, and so does whatever is asked next; closing is as always."""
        end = needed(mortal.end, "the subject cannot end its guest")
        guest = mortal.open()
        try:
            source = opened(guest, mode, frozenset({CodeHit}), mortal.hold)
            trap = None
            source.arm(TrapRequest(code=code_of(mortal)))
            if mortal.work is not None and mortal.functions:
                begin(mortal, 1)
                trap = arrives(source, mortal)  # and held
            ending = threading.Timer(_SOON_S, end)
            ending.start()
            deadline = time.monotonic() + mortal.patience

            def until_the_end() -> None:
                while time.monotonic() < deadline:
                    other = source.wait(mortal.patience)
                    if other is not None:  # the hold before it has run out
                        source.resume(other)

            _gone(until_the_end)
            ending.join()
            _gone(lambda: source.wait(0))
            _gone(lambda: source.arm(TrapRequest(code=code_of(mortal))))
            if trap is not None:
                with contextlib.suppress(GuestGone):
                    source.resume(trap)
            eventually(lambda: not guest.alive(), mortal.patience, "the guest is not alive any more")
            source.close()
            source.close()
        finally:
            guest.close()


def _gone(call: Callable[[], object]) -> None:
    with pytest.raises(GuestGone) as caught:
        call()
    check_error(caught.value)
