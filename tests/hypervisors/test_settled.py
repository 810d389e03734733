"""The table of settled asids, against what the plugin's C code finds in it."""

import random
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live.hypervisors.qemu.plugin import settled as module
from live.hypervisors.qemu.plugin.settled import (
    BITS,
    EMPTY,
    GONE,
    MARK,
    MOST,
    MULTIPLIER,
    PROBES,
    SLOTS,
    SettledTable,
    first_slot,
)

AT = 64
"""Where the table begins in the memory that is shared."""
HEADER = Path(module.__file__).with_name("wire.h").read_text()


class Shared:
    """The memory, with something before and behind the table."""

    def __init__(self):
        self.memory = bytearray(b"\xaa" * AT + bytes(8 * SLOTS) + b"\xaa" * AT)
        self.table = SettledTable(memoryview(self.memory), AT)

    def finds(self, asid):
        """asid_settled() of events.c: SETTLED_FIRST, then slot by slot."""
        at = ((asid >> 12) * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 50
        for probe in range(64):
            (slot,) = struct.unpack_from("<Q", self.memory, AT + 8 * ((at + probe) % SLOTS))
            if slot == asid | 1:
                return True
            if slot == 0:
                return False
        return False

    def slots(self):
        return struct.unpack_from(f"<{SLOTS}Q", self.memory, AT)


@pytest.fixture
def shared():
    return Shared()


def page(number):
    return number << 12


SLOT = first_slot(page(1))


def colliding(count, slot=SLOT):
    """So many asids whose search begins at the same slot."""
    found = (page(number) for number in range(1, 1 << 24) if first_slot(page(number)) == slot)
    return [asid for asid, _ in zip(found, range(count), strict=False)]


def test_the_layout_is_that_of_the_header():
    values = dict(re.findall(r"\b(SETTLED_(?:BITS|PROBES|EMPTY|MARK|GONE)) = (\w+)", HEADER))
    named = {"BITS": BITS, "PROBES": PROBES, "EMPTY": EMPTY, "MARK": MARK, "GONE": GONE}
    assert {name.removeprefix("SETTLED_"): int(value) for name, value in values.items()} == named
    assert "SETTLED_SLOTS = 1 << SETTLED_BITS" in HEADER
    assert SLOTS == 1 << BITS
    (hashed,) = re.findall(r"#define SETTLED_FIRST\(asid\) (.*)", HEADER)
    assert hashed == f"(((asid) >> 12) * {MULTIPLIER:#x}ull >> (64 - SETTLED_BITS))"


def test_what_is_settled_is_found_and_nothing_else(shared):
    shared.table.replace({page(1), page(2)})
    assert [shared.finds(page(number)) for number in (0, 1, 2, 3)] == [False, True, True, False]
    shared.table.replace({page(2), page(3)})
    assert [shared.finds(page(number)) for number in (0, 1, 2, 3)] == [False, False, True, True]
    assert [page(number) in shared.table for number in (1, 2, 3)] == [False, True, True]


def test_what_stays_settled_is_not_written_again(shared):
    shared.table.replace({page(1), page(2)})
    before = bytes(shared.memory)
    shared.table.replace({page(1), page(2)})
    assert shared.memory == before


def test_those_that_collide_are_all_found_as_far_as_the_plugin_looks(shared):
    asids = colliding(PROBES + 1)
    shared.table.replace(set(asids))
    found = [asid for asid in asids if shared.finds(asid)]
    assert len(found) == PROBES
    assert found == [asid for asid in asids if asid in shared.table]
    (left,) = set(asids) - set(found)
    shared.table.replace({*found[1:], left})
    assert shared.finds(left), "it has the place of the one that is gone"
    assert not shared.finds(found[0])


def test_one_that_is_gone_does_not_hide_those_behind_it(shared):
    first, second, third = colliding(3)
    for asids in ({first}, {first, second}, {first, second, third}, {second, third}, {third}):
        shared.table.replace(asids)
        assert {one for one in (first, second, third) if shared.finds(one)} == asids


def test_the_last_slot_is_followed_by_the_first(shared):
    asids = set(colliding(4, SLOTS - 1))
    shared.table.replace(asids)
    assert all(shared.finds(asid) for asid in asids)
    assert sum(slot != EMPTY for slot in shared.slots()[:3]) == 3


def test_more_than_the_table_keeps_are_not_settled(shared):
    asids = {page(number) for number in range(MOST + 100)}
    shared.table.replace(asids)
    found = {asid for asid in asids if shared.finds(asid)}
    assert len(found) == MOST
    assert found == {asid for asid in asids if asid in shared.table}


def test_clearing_keeps_what_is_settled_and_gives_back_its_slots(shared, monkeypatch):
    monkeypatch.setattr(module, "MOST", PROBES + 1)
    keep = set(colliding(PROBES))
    for number in range(3 * PROBES):
        shared.table.replace({*keep, page(1 << 20 | number)})
        assert all(shared.finds(asid) for asid in keep)
    assert shared.slots().count(GONE) <= PROBES + 1


@pytest.mark.slow
def test_after_many_changes_a_search_still_comes_to_an_end(shared):
    """What is gone fills the table up, unless it is cleared now and then."""
    chance = random.Random(7)
    for _ in range(40):
        asids = {page(chance.randrange(1 << 30)) for _ in range(MOST // 4)}
        shared.table.replace(asids)
        assert all(shared.finds(asid) == (asid in shared.table) for asid in asids)
        slots = shared.slots()
        assert slots.count(GONE) <= MOST
        assert sum(slot & MARK for slot in slots) <= MOST
    assert sum(shared.finds(asid) for asid in asids) > 0.99 * len(asids)
    assert not any(shared.finds(page((1 << 30) + number)) for number in range(1000))


_CROWDED = colliding(40) + colliding(40, SLOT + 3)
_ASIDS = st.one_of(st.integers(0, 1 << 40).map(page), st.sampled_from(_CROWDED))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(_ASIDS, max_size=80), max_size=8))
def test_the_plugin_finds_what_the_table_has(steps):
    shared = Shared()
    ever = set().union(*steps, _CROWDED)
    for asids in steps:
        shared.table.replace(asids)
        for asid in ever:
            assert shared.finds(asid) == (asid in shared.table)
            assert asid in asids or not shared.finds(asid)
    assert shared.memory[:AT] == shared.memory[-AT:] == b"\xaa" * AT
