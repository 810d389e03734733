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
ASIDS, CALLS = frozenset({AsidChange}), frozenset({AsidChange, Syscall})
NO_USE = "it traps neither the kernel's functions nor asids with system calls"


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


def choose(mode, *offers, hold=1.0, kinds=KINDS):
    guest = SimpleNamespace(info=SimpleNamespace(name="vm"), offers=offers)
    return modes.choose(guest, X86_64, mode, kinds, hold)


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


@pytest.mark.parametrize(("mode", "needs"), [("asid", CALLS), ("diff", ASIDS)])
def test_asid_changes_come_from_the_first_offer_that_has_all_that_is_needed(mode, needs):
    functions, good, worse = Offer("best"), Offer("good", supports=needs | KINDS), Offer("x", supports=CALLS)
    choice = choose(mode, functions, good, worse, hold=7)
    assert good.opened == [("x86_64", needs, 7)]
    assert functions.opened == worse.opened == []
    assert (choice.mode, choice.source.mode, choice.skipped) == (mode, "good", ())
    assert choice.guarantee == modes.ASID_TRAPS[mode].guarantee != choice.source.guarantee
    assert choice.description == choice.source.description


@pytest.mark.parametrize(
    ("mode", "supports", "sentence"),
    [
        ("asid", KINDS, "traps asid changes and system calls; it can be watched in: good, poll."),
        ("asid", ASIDS, "traps asid changes and system calls; it can be watched in: good, diff, poll."),
        ("diff", KINDS, "traps asid changes; it can be watched in: good, poll."),
    ],
)
def test_asid_changes_that_cannot_be_had_are_an_error(mode, supports, sentence):
    with pytest.raises(TargetError) as caught:
        choose(mode, Offer("good", supports=supports))
    assert str(caught.value) == f"vm cannot be watched in {mode} mode: nothing that it offers {sentence}"


def test_asid_changes_that_cannot_be_opened_are_an_error_if_no_other_offer_has_them():
    bad, worse = (Offer(name, fails=f"{name} is not there.", supports=CALLS) for name in ("bad", "worse"))
    with pytest.raises(TargetError, match=r"^bad is not there\."):
        choose("asid", bad, worse)
    assert choose("asid", bad, worse, Offer("good", supports=CALLS)).source.mode == "good"


def test_modes_of_asid_changes_are_named_where_they_can_be_had():
    with pytest.raises(TargetError, match="it can in: good, asid, diff, poll"):
        choose("magic", Offer("good", supports=CALLS))


def test_auto_prefers_functions_to_asid_changes():
    both = Offer("both", supports=KINDS | CALLS)
    assert choose("auto", Offer("asids", supports=CALLS), both).mode == "both"


@pytest.mark.parametrize("kinds", [frozenset(), KINDS], ids=["no functions", "not trapped"])
def test_auto_is_left_with_asid_changes(kinds):
    """The kernel lacks a function of the points, or no offer can trap one."""
    offer = Offer("good", supports=CALLS)
    choice = choose("auto", Offer("less", supports=ASIDS), offer, kinds=kinds)
    assert (choice.mode, choice.skipped) == ("asid", (f"less: {NO_USE}",))
    assert offer.opened == [("x86_64", CALLS, 1.0)]


def test_auto_does_not_ask_an_offer_of_functions_that_failed_for_asid_changes():
    both = Offer("both", fails="it is busy.", supports=KINDS | CALLS)
    choice = choose("auto", both)
    assert (choice.mode, choice.skipped) == ("poll", ("both: it is busy.",))
    assert len(both.opened) == 1


def test_auto_is_left_with_poll_where_asid_changes_cannot_be_had_either():
    none = choose("auto", Offer("good", supports=ASIDS), kinds=frozenset())
    assert (none.mode, none.source, none.skipped) == ("poll", None, (f"good: {NO_USE}",))
    failed = choose("auto", Offer("good", fails="it is busy.", supports=CALLS), kinds=frozenset())
    assert (failed.mode, failed.skipped) == ("poll", ("asid: it is busy.",))
