"""Which offer of a guest is taken, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import TargetError
from live.core.traps import AsidChange, CodeHit, Syscall
from live.watch import modes
from tests.hypervisors.fake import FakeSource

KINDS = frozenset({CodeHit})


class Offer:
    def __init__(self, mode, *, fails=None, reluctant=None, supports=KINDS):
        self.mode, self.fails, self.reluctant, self.opened = mode, fails, reluctant, []
        self.supports = frozenset(supports)

    def reluctance(self, kinds):
        return self.reluctant

    def open(self, machine, kinds, hold):
        self.opened.append((machine.name, kinds, hold))
        if self.fails:
            raise TargetError(self.fails)
        source = FakeSource()
        source.mode, source.supports = self.mode, self.supports
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


def test_where_only_asids_can_be_trapped_it_is_asid_mode():
    asids = Offer("panda", supports={AsidChange, Syscall}, reluctant="nothing else can be trapped.")
    choice = choose("auto", Offer("best", fails="it is not there."), asids, hold=3)
    assert (choice.mode, choice.source.mode, choice.skipped) == ("asid", "panda", ("best: it is not there.",))
    assert asids.opened == [("x86_64", asids.supports, 3)]
    assert choice.guarantee == modes.ASID_TRAPS["asid"].guarantee
    assert choose("auto", asids, Offer("good")).mode == "good"
    assert choose("asid", Offer("good"), asids).source.mode == "panda"


def test_asid_mode_that_cannot_be_had_is_no_error_in_auto():
    asids = Offer("panda", supports={AsidChange, Syscall}, fails="another one reads.")
    assert (choose("auto", asids).mode, choose("auto", asids).skipped) == (
        "poll",
        ("asid: another one reads.",),
    )


def test_without_system_calls_there_is_diff_for_who_asks():
    changes = Offer("panda", supports={AsidChange})
    choice = choose("diff", changes)
    assert (choice.mode, choice.source.mode) == ("diff", "panda")
    assert changes.opened == [("x86_64", frozenset({AsidChange}), 1.0)]
    assert choose("auto", changes).mode == "poll"
    with pytest.raises(TargetError, match=r"asid changes and system calls; it can .* panda, diff, poll"):
        choose("asid", changes)
    with pytest.raises(TargetError, match=r"nothing that it offers traps asid changes; .*: good, poll"):
        choose("diff", Offer("good"))
