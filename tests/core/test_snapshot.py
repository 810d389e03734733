"""Which moments two snapshots imply, and which of them a trap repeats."""

import pytest

from live.core.snapshot import Happening, Moment, changes, difference, without_repeats
from tests.core.build import snapshot, task

CHILD, CHANGED, CORPSE = task(5), task(5, generation=1), task(5, generation=1, dead=True, exit_code=9)
INSIDE = task(5, transient=True)


def test_difference_reports_disappearances_before_what_took_the_pid():
    old = task(5, start=1)
    moments = list(difference({old.identity: old}, snapshot(task(5, start=2))))
    assert [m.moment for m in moments] == [Moment.REAP, Moment.FORK]


@pytest.mark.parametrize(
    ("found", "attached", "gone", "moments"),
    [
        (CHILD, False, False, [Moment.FORK]),
        (CHANGED, False, False, [Moment.EXEC]),
        (CORPSE, False, False, [Moment.EXEC, Moment.DEATH]),
        (CHILD, False, True, [Moment.RETURN, Moment.FORK]),
        (CORPSE, False, True, [Moment.RETURN, Moment.EXEC, Moment.DEATH]),
        (CHILD, True, False, [Moment.PRESENT]),
        (CHILD, True, True, [Moment.PRESENT]),
        (CORPSE, True, False, [Moment.CORPSE]),
        (INSIDE, True, False, []),
        (INSIDE, False, True, []),
    ],
)
def test_difference_of_what_is_not_known(found, attached, gone, moments):
    here = {found.identity}
    result = difference({}, snapshot(found), here if attached else (), here if gone else ())
    assert list(result) == [Happening(moment, found) for moment in moments]


@pytest.mark.parametrize(
    ("before", "found", "moments"),
    [
        (CHILD, CHILD._replace(comm=b"renamed"), []),
        (CHILD, CHANGED, [Moment.EXEC]),
        (CHILD, CORPSE, [Moment.EXEC, Moment.DEATH]),
        (CHANGED, CORPSE, [Moment.DEATH]),
        (CORPSE, CORPSE._replace(uid=7), []),
        (CHILD, INSIDE, []),
        (CHILD, CHANGED._replace(transient=True), []),
        (CHANGED, CORPSE._replace(transient=True), [Moment.DEATH]),
        (None, CHILD, [Moment.FORK]),
        (None, INSIDE, []),
    ],
)
def test_changes_of_one_task(before, found, moments):
    assert list(changes(before, found)) == [Happening(moment, found) for moment in moments]


def test_only_an_exec_to_the_image_that_was_shown_is_a_repeat():
    last = task(5, generation=1, comm=b"renamed")
    exec_ = Happening(Moment.EXEC, CHANGED)
    assert without_repeats(exec_, last, 1) == Happening(Moment.REPEAT, last)
    assert without_repeats(exec_, last, 0) is exec_
    death = Happening(Moment.DEATH, CORPSE)
    assert without_repeats(death, last, 1) is death
