"""Which offer of a guest is taken, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import TargetError
from live.core.traps import CodeHit
from live.watch import modes
from tests.hypervisors.fake import FakeSource

KINDS = frozenset({CodeHit})


class Offer:
    def __init__(self, mode, *, fails=None, reluctant=None):
        self.mode, self.fails, self.reluctant, self.opened = mode, fails, reluctant, []

    def reluctance(self, kinds):
        return self.reluctant

    def open(self, machine, kinds, hold):
        self.opened.append((machine.name, kinds, hold))
        if self.fails:
            raise TargetError(self.fails)
        source = FakeSource()
        source.mode = self.mode
        return source


def choose(mode, *offers, hold=1.0):
    guest = SimpleNamespace(info=SimpleNamespace(name="vm"), offers=offers)
    return modes.choose(guest, X86_64, mode, KINDS, hold)


def test_the_first_offer_that_works_is_taken():
    worse = Offer("worse")
    choice = choose("auto", Offer("best", fails="it is not there."), Offer("good"), worse, hold=7)
    assert (choice.mode, choice.skipped, worse.opened) == ("good", ("best: it is not there.",), [])
    choice.close()
    assert choice.source.closed


def test_what_the_user_did_not_ask_for_is_not_opened_where_it_costs_much():
    dear = Offer("dear", reluctant="it costs much; ask for it.")
    choice = choose("auto", dear)
    assert (choice.mode, choice.source, choice.skipped) == (
        "poll",
        None,
        ("dear: it costs much; ask for it.",),
    )
    assert dear.opened == []
    assert choose("dear", dear, hold=3).mode == "dear"
    assert dear.opened == [("x86_64", KINDS, 3)]
    choice.close()


def test_a_reason_that_modes_share_is_said_once():
    choice = choose(
        "auto", Offer("one", fails="no."), Offer("two", fails="no."), Offer("three", fails="never.")
    )
    assert choice.skipped == ("one, two: no.", "three: never.")


def test_the_mode_that_is_asked_for_and_cannot_be_had_is_an_error():
    with pytest.raises(TargetError, match=r"it is not there\."):
        choose("best", Offer("best", fails="it is not there."), Offer("good"))
    with pytest.raises(TargetError, match="vm cannot be watched in magic mode; it can in: good, poll"):
        choose("magic", Offer("good"))
    with pytest.raises(TargetError, match="it can in: poll"):
        choose("plugin")


def test_poll_needs_no_offer_and_tries_none():
    good = Offer("good")
    choice = choose("poll", good)
    assert (choice.mode, choice.source, choice.skipped, good.opened) == ("poll", None, (), [])
