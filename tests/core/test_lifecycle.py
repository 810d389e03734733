"""The table: its rules, and that nothing in it is idle."""

import pytest

from live.core import tracker as module
from live.core.lifecycle import TRANSITIONS, Emit, State, diagram
from live.core.snapshot import Happening, Moment
from tests.core.build import NOW, snapshot, task, tracker

CHILD, CHANGED, CORPSE = task(5), task(5, generation=1), task(5, generation=1, dead=True, exit_code=9)
INSIDE = task(5, transient=True)


def test_repeating_any_moment_emits_nothing():
    """The rule that makes an extra snapshot harmless, read off the table itself."""
    for (_state, moment), first in TRANSITIONS.items():
        again = TRANSITIONS.get((first.state, Moment.REPEAT if moment is Moment.EXEC else moment))
        if again is not None:
            assert again.emits == (), (first, moment)


def test_only_a_live_process_ends_and_only_one_that_is_not_starts():
    for (state, moment), (after, emits, _late) in TRANSITIONS.items():
        starts = sum(emit.value.startswith("start") for emit in emits)
        ends = sum(emit.value.startswith("end") for emit in emits)
        assert starts - ends == (after is State.LIVE) - (state is State.LIVE), (state, moment)


def test_the_diagram_shows_every_transition():
    assert diagram().count("-->") == len(TRANSITIONS) + 2
    assert all(state.value in diagram() for state in State)


class Recorder(dict):
    """The table, and which of its rows were looked up."""

    def __init__(self):
        super().__init__(TRANSITIONS)
        self.used = []

    def get(self, key, default=None):
        self.used.append(tuple(one.value for one in key))
        return super().get(key, default)


def trap(moment, subject):
    return lambda t: t.receive(Happening(moment, subject), NOW)


def tasks(*listed):
    return lambda t: t.receive_tasks(snapshot(*listed))


STORIES = {
    "a child": (
        [tasks(), trap(Moment.FORK, CHILD), tasks(CHILD), trap(Moment.EXEC, CHANGED), tasks(CHANGED)],
        [("absent", "fork"), ("live", "exec")],
    ),
    "a snapshot is first, every time": (
        [
            tasks(),
            tasks(CHILD),
            trap(Moment.FORK, CHILD),
            tasks(CHANGED),
            trap(Moment.EXEC, CHANGED),
            tasks(CORPSE),
            trap(Moment.DEATH, CORPSE),
            tasks(),
        ],
        [
            ("absent", "fork"),
            ("live", "fork"),
            ("live", "exec"),
            ("live", "repeat"),
            ("live", "death"),
            ("dead", "death"),
            ("dead", "reap"),
        ],
    ),
    "and it is gone before its traps": (
        [
            tasks(),
            tasks(CHILD),
            tasks(),
            trap(Moment.FORK, CHILD),
            trap(Moment.EXEC, CHANGED),
            trap(Moment.DEATH, CORPSE),
        ],
        [("absent", "fork"), ("live", "reap"), ("gone", "fork"), ("gone", "exec"), ("gone", "death")],
    ),
    "the list lied": (
        [tasks(), tasks(CHANGED), tasks(), tasks(CHANGED)],
        [("absent", "exec"), ("live", "reap"), ("gone", "return"), ("absent", "exec")],
    ),
    "the list lied, it was there when we attached": (
        [tasks(CHILD), tasks(), tasks(CHILD), tasks(), tasks(CORPSE), tasks(), tasks(CORPSE)],
        [
            ("attached", "present"),
            ("live", "reap"),
            ("gone", "present"),
            ("live", "reap"),
            ("gone", "corpse"),
            ("dead", "reap"),
            ("gone", "corpse"),
        ],
    ),
    "its birth was lost": ([tasks(), trap(Moment.DEATH, CORPSE)], [("absent", "death")]),
    "a zombie when we attached": ([tasks(CORPSE)], [("attached", "corpse")]),
    "inside execve when we attached, then complete": (
        [tasks(INSIDE), trap(Moment.EXEC, CHANGED)],
        [("attached", "exec")],
    ),
    "inside execve when we attached, then dead": (
        [tasks(INSIDE), trap(Moment.DEATH, CORPSE)],
        [("attached", "death")],
    ),
    "one that we attached to is forked": ([tasks(INSIDE), trap(Moment.FORK, CHILD)], [("attached", "fork")]),
    "a list has it twice": (
        [tasks(CHILD, CHILD), tasks(), tasks(CORPSE, CORPSE)],
        [
            ("attached", "present"),
            ("live", "present"),
            ("live", "reap"),
            ("gone", "corpse"),
            ("dead", "corpse"),
        ],
    ),
}


def rows_of(steps, monkeypatch):
    """The rows that these steps look up, and the tracker behind them."""
    table = Recorder()
    monkeypatch.setattr(module, "TRANSITIONS", table)
    t = tracker()
    for step in steps:
        step(t)
    return table.used, t


@pytest.mark.parametrize("name", STORIES)
def test_which_rows_a_story_takes(name, monkeypatch):
    steps, rows = STORIES[name]
    used, t = rows_of(steps, monkeypatch)
    assert used == rows
    assert t.counts.unexpected == 0


def test_the_stories_take_every_row(monkeypatch):
    used = {row for steps, _ in STORIES.values() for row in rows_of(steps, monkeypatch)[0]}
    assert used == {(state.value, moment.value) for state, moment in TRANSITIONS}


def test_only_one_row_is_late():
    late = {pair: row.emits for pair, row in TRANSITIONS.items() if row.late}
    assert late == {(State.ABSENT, Moment.DEATH): (Emit.START_FORK, Emit.END)}
