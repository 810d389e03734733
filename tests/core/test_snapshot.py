"""Which moments two snapshots imply, and which of them a trap repeats."""

import pytest

from live.core.snapshot import Happening, Moment, difference, without_repeats
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


def test_only_an_exec_to_the_image_that_was_shown_is_a_repeat():
    last = task(5, generation=1, comm=b"renamed")
    exec_ = Happening(Moment.EXEC, CHANGED)
    assert without_repeats(exec_, last, 1) == Happening(Moment.REPEAT, last)
    assert without_repeats(exec_, last, 0) is exec_
    death = Happening(Moment.DEATH, CORPSE)
    assert without_repeats(death, last, 1) is death
