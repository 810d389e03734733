"""The tables of an asid: nothing in them is forgotten, and nothing is idle."""

import pytest

from live.core.asids import CALM, LOOKS, STANDINGS, Cause, Look, Seen, Standing, diagram

NO_CHANGE = {
    # Nothing is known, and nothing is kept.
    Standing.NEW: {Seen.UNOWNED, Seen.LEFT, Seen.ANSWERED},
    # It is trapped already; an asid that has a task is not strange.
    Standing.PENDING: {Seen.TRANSIENT, Seen.STRANGE, Seen.LEFT, Seen.ANSWERED},
    # A child is waited for, whatever else is seen.
    Standing.SHARED: {Seen.COMPLETE, Seen.TRANSIENT, Seen.STRANGE, Seen.LEFT, Seen.SHARES},
    Standing.SETTLED: {Seen.COMPLETE, Seen.STRANGE, Seen.ANSWERED},
    # It has no task that could leave it.
    Standing.FOREIGN: {Seen.UNOWNED, Seen.STRANGE, Seen.LEFT, Seen.ANSWERED},
}
"""What changes nothing, and why."""


def reachable(start, rows):
    found, todo = set(), [start]
    while todo:
        here = todo.pop()
        after = {new for old, new in rows if old is here} - found
        found |= after
        todo += after
    return found


ROWS = [(old, new) for (old, _), new in STANDINGS.items()]


def test_every_pair_is_a_row_or_known_to_change_nothing():
    idle = {(standing, seen) for standing, pairs in NO_CHANGE.items() for seen in pairs}
    assert not idle & STANDINGS.keys()
    assert idle | STANDINGS.keys() == {(standing, seen) for standing in Standing for seen in Seen}


def test_every_row_changes_something():
    assert all(old is not new for old, new in ROWS)


@pytest.mark.parametrize("standing", Standing)
def test_every_standing_is_come_to_and_left(standing):
    assert standing in reachable(Standing.NEW, ROWS)
    assert Standing.NEW in reachable(standing, ROWS)


@pytest.mark.parametrize(("seen", "calm"), [(Seen.COMPLETE, True), (Seen.TRANSIENT, False)])
def test_who_has_an_asid_decides_whether_it_is_trapped(seen, calm):
    """But while a child is waited for."""
    for standing in set(Standing) - {Standing.SHARED}:
        assert (STANDINGS.get((standing, seen), standing) in CALM) == calm


def test_what_makes_an_asid_new_again_leaves_it_trapped():
    assert {seen for (_, seen), new in STANDINGS.items() if new is Standing.NEW} == {Seen.UNOWNED, Seen.LEFT}
    assert Standing.NEW not in CALM


def test_every_cause_has_a_look_and_every_look_a_cause():
    assert LOOKS.keys() == set(Cause)
    assert set(LOOKS.values()) == set(Look)


def test_the_diagram_shows_every_row():
    lines = [line.strip() for line in diagram().splitlines()]
    assert lines[:2] == ["stateDiagram-v2", "[*] --> new"]
    rows = {f"{old.value} --> {new.value}: {seen.value}" for (old, seen), new in STANDINGS.items()}
    assert set(lines[2:]) == rows
    assert len(lines) == len(rows) + 2
