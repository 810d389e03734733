"""Checks that a watch over memory with faults ends in a sentence, and never in a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from live.core.errors import GuestGone, PseError
from live.core.events import Event
from live.testing.capabilities import CapabilityContract
from live.testing.faults import Faults, FaultyGuest
from live.testing.sentences import check_error
from live.testing.subject import Subject
from live.testing.traps import begin
from live.watch.monitor import Monitor
from live.watch.session import Session

_FEW_S = 0.3


def found(subject: Subject, faults: Faults) -> Session:
    """The guest's system, through memory with faults; skips if there is none."""
    if not subject.systems:
        pytest.skip("the subject runs no operating system that is known")
    return Session(FaultyGuest(subject.open(), faults), systems_wanted=subject.systems)


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """Whatever is raised within is for the user, and goes no further."""
    try:
        yield
    except PseError as error:
        check_error(error)


class WatchContract(CapabilityContract):
    """A `Session` and a `Monitor` over the guest, with injected faults."""

    @pytest.fixture
    def undone(self, subject: Subject) -> Iterator[None]:
        """What a check did to the guest is undone behind it."""
        yield
        if subject.restore is not None:
            subject.restore()

    @pytest.mark.usefixtures("undone")
    def test_attaching_to_what_cannot_be_read(self, subject: Subject) -> None:
        """From the n-th read on, and at every n-th: a session, or a sentence."""
        for faults in (
            *(Faults(after=number) for number in (0, 1, 3, 10, 30, 100, 1000)),
            *(Faults(period=number) for number in (1, 2, 7)),
            Faults(gone=True),
        ):
            with in_a_sentence():
                found(subject, faults).close()
            if faults.gone:
                with pytest.raises(GuestGone):
                    found(subject, faults)

    @pytest.mark.usefixtures("undone")
    def test_polling_what_can_be_read_now_and_then(self, subject: Subject) -> None:
        """Events of what can be read; `GuestGone` when nothing can be read any more."""
        for period in (0, 2, 3, 11):
            faults = Faults()
            with found(subject, faults) as session, in_a_sentence():
                monitor = Monitor(session, mode="poll")
                faults.period = period
                events = list(monitor.events(duration=_FEW_S))
                assert events or period, "nothing runs in the guest"
        faults = Faults()
        with found(subject, faults) as session:
            batches = Monitor(session, mode="poll").batches(duration=subject.patience)
            next(batches)
            faults.after = 0
            with pytest.raises(GuestGone) as caught:
                list(batches)
            check_error(caught.value)

    @pytest.mark.usefixtures("undone")
    def test_trapping_what_can_be_read_now_and_then(self, subject: Subject, mode: str) -> None:
        """The guest goes on whatever cannot be read, and comes to the end of its work."""
        for faulty in (_often, _never_again):
            faults = Faults()
            with found(subject, faults) as session:
                wait = None
                with in_a_sentence():
                    monitor = Monitor(session, mode=mode)
                    batches = monitor.batches(duration=4 * _FEW_S)
                    seen: list[Event] = list(next(batches))
                    wait = begin(subject, 2)
                    faulty(faults)
                    for batch in batches:
                        seen.extend(batch)
                assert wait is not None, "not even the first look succeeded, without any fault"
                wait()


def _often(faults: Faults) -> None:
    faults.period = 3


def _never_again(faults: Faults) -> None:
    faults.after = 0
