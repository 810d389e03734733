"""The scorer, over records that are made up: what counts as right, and what must not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.accuracy.compare import Score, compare
from tests.guest.truth import Truth, TruthEvent, TruthExec, TruthExit, TruthFork

PARENT, CHILD = 100, 200
MS = 1_000_000
STARTS = {PARENT: 9, CHILD: 19}


def truth(*, parent_ends: int | None, exec_ppid: int) -> Truth:
    """A parent forks a child, which execs at 1 s and has some parent then, and at 3 s, when it is init's.

    The parent ends at some time, in ms, or never.
    """
    events: list[TruthEvent] = [
        TruthFork(ts=10, cpu=0, by=1, pid=PARENT, tgid=PARENT, ppid=1, kernel=False, start=9, comm="p"),
        TruthFork(ts=20, cpu=0, by=100, pid=CHILD, tgid=CHILD, ppid=PARENT, kernel=False, start=19, comm="p"),
        TruthExec(ts=1000 * MS, cpu=1, by=200, tgid=CHILD, ppid=exec_ppid, start=19, comm="c", filename="/c"),
        TruthExec(ts=3000 * MS, cpu=1, by=200, tgid=CHILD, ppid=1, start=19, comm="c", filename="/c"),
    ]
    if parent_ends is not None:
        events.append(
            TruthExit(
                **{"ts": parent_ends * MS, "cpu": 0, "by": 100, "pid": PARENT, "tgid": PARENT, "ppid": 1},
                **{"kernel": False, "group_dead": True, "own_code": 0, "status": 0, "start": 9, "comm": "p"},
            )
        )
    return Truth(events=tuple(sorted(events, key=lambda event: event.ts)))


def document(event: str, reason: str, *, pid: int, ppid: int) -> dict[str, Any]:
    """As `pse watch --json` prints it, as far as it is compared."""
    own = {"event": event, "reason": reason, "start_boottime": STARTS[pid]}
    comm = "c" if reason == "exec" else "p"
    return {"process": {"pid": pid, "name": comm, "parent": {"pid": ppid}, "exit_code": 0}, "pse": own}


def score(record: Truth, ppid: int) -> Score:
    """Of documents that are right but for the ppid of the exec, which is ``ppid``."""
    documents = [
        document("ProcessStart", "fork", pid=PARENT, ppid=1),
        document("ProcessStart", "fork", pid=CHILD, ppid=PARENT),
        document("ProcessStart", "exec", pid=CHILD, ppid=ppid),
        document("ProcessStart", "exec", pid=CHILD, ppid=1),
    ]
    if any(isinstance(event, TruthExit) for event in record.events):
        documents.append(document("ProcessEnd", "exit", pid=PARENT, ppid=1))
    return compare(record, documents)


def test_what_is_the_same_is_exact() -> None:
    found = score(truth(parent_ends=None, exec_ppid=PARENT), PARENT)
    assert found.exact
    assert found.rows["exec"].raced == 0


@pytest.mark.parametrize(("real", "seen"), [(1, PARENT), (PARENT, 1)])
def test_an_orphan_may_be_seen_on_either_side_of_its_adoption(real: int, seen: int) -> None:
    found = score(truth(parent_ends=900, exec_ppid=real), seen)
    assert found.exact
    assert found.rows["exec"].raced == 1


@pytest.mark.parametrize("ends", [None, 2000])
@pytest.mark.parametrize(("real", "seen"), [(1, PARENT), (PARENT, 1)])
def test_nobody_is_an_orphan_whose_parent_lives(ends: int | None, real: int, seen: int) -> None:
    found = score(truth(parent_ends=ends, exec_ppid=real), seen)
    assert found.rows["exec"].wrong == 1
    assert not found.exact


def test_an_orphan_has_no_other_parent() -> None:
    assert score(truth(parent_ends=900, exec_ppid=PARENT), 77).rows["exec"].wrong == 1
