"""Events as rows: the host's types, absent values, escapes, and the tree."""

import datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from volatility3.framework import interfaces, renderers

from live.core.events import (
    EndReason,
    ExitStatus,
    Identity,
    Occasion,
    Process,
    ProcessEnd,
    ProcessExec,
    ProcessStart,
    StartReason,
)
from live.volatility.output import grid, sources

START_NS = 1_700_000_000_250_000_000
SEEN = Occasion(time_ns=START_NS + 1_000_000_000, trigger="image")


def process(pid, ppid=1, **changes):
    values = dict(
        identity=Identity(pid, pid * 10),
        generation=1,
        pid=pid,
        ppid=ppid,
        comm="cat",
        kernel=False,
        task=0xFFFF888000001000,
        asid=0x5000,
        start_ns=START_NS,
        exe="/bin/cat",
        args=("cat", "a b"),
        uid=1,
        gid=2,
        euid=3,
        egid=4,
    )
    return Process(**{**values, **changes})


def start(pid, ppid=1, **changes):
    return ProcessStart(process=process(pid, ppid, **changes), reason=StartReason.RUNNING, occasion=SEEN)


def cells(event):
    return dict(zip([title for title, _ in grid.columns()], grid.row(event), strict=True))


def test_a_start():
    utc = datetime.timezone.utc
    row = cells(start(7))
    assert isinstance(row.pop("EXIT"), renderers.NotApplicableValue)
    assert row == {
        "EVENT": "start",
        "TIME": datetime.datetime(2023, 11, 14, 22, 13, 21, 250000, utc),
        "PID": 7,
        "TID": 7,
        "PPID": 1,
        "COMM": "cat",
        "REASON": "running",
        "ARGS": "cat 'a b'",
        "EXE": "/bin/cat",
        "UID": 1,
        "GID": 2,
        "EUID": 3,
        "EGID": 4,
        "CREATION TIME": datetime.datetime(2023, 11, 14, 22, 13, 20, 250000, utc),
        "ASID": 0x5000,
        "OFFSET (V)": 0xFFFF888000001000,
        "SEEN BY": "image",
        "File output": "Disabled",
    }


def test_every_value_has_its_columns_type():
    kernel = start(2, kernel=True, asid=None, exe=None, args=None)
    unread = start(3, asid=None, exe=None, args=None, uid=None, gid=None, euid=None, egid=None, start_ns=None)
    for event in (start(7), kernel, unread, ended(9)):
        for (title, kind), value in zip(grid.columns(), grid.row(event), strict=True):
            assert isinstance(value, (kind, interfaces.renderers.BaseAbsentValue)), title
    renderers.TreeGrid(grid.columns(), grid.flat([start(7), kernel, unread])).populate()


def ended(pid, code=0, **changes):
    status = ExitStatus.from_kernel(code)
    return ProcessEnd(process=process(pid), reason=EndReason.EXIT, status=status, occasion=SEEN, **changes)


def test_how_it_ended():
    assert cells(ended(9, 3 << 8))["EXIT"] == "3"
    assert cells(ended(9, 0x8B))["EXIT"] == "SIGSEGV (core)"
    gone = ProcessEnd(process=process(9), reason=EndReason.GONE, status=None, occasion=SEEN)
    assert isinstance(cells(gone)["EXIT"], renderers.NotAvailableValue)
    replaced = ProcessEnd(process=process(9), reason=EndReason.EXEC, status=None, occasion=SEEN)
    assert isinstance(cells(replaced)["EXIT"], renderers.NotApplicableValue)


def test_absent_values():
    kernel = cells(start(2, kernel=True, asid=None, exe=None, args=None))
    for title in ("ARGS", "EXE", "ASID"):
        assert isinstance(kernel[title], renderers.NotApplicableValue)
    unread = cells(start(3, exe=None, args=None, uid=None, start_ns=None))
    for title in ("ARGS", "EXE", "UID"):
        assert isinstance(unread[title], renderers.UnreadableValue)
    assert isinstance(unread["CREATION TIME"], renderers.NotAvailableValue)
    assert cells(start(3, args=()))["ARGS"] == ""


def test_a_clock_that_says_anything():
    for wild in (1 << 63, -(1 << 63), (1 << 64) * 1000):
        value = cells(start(3, start_ns=wild))["CREATION TIME"]
        assert isinstance(value, (datetime.datetime, interfaces.renderers.BaseAbsentValue))


def test_text_from_the_guest_is_escaped():
    row = cells(start(3, comm="\x1b[31m\r", exe="/a\n/b", args=("\u202ex", "\udcff")))
    assert row["COMM"] == "\\x1b[31m\\x0d"
    assert row["EXE"] == "/a\\x0a/b"
    assert row["ARGS"] == "'\\u202ex' '\\xff'"


def test_the_tree_has_parents_above_children():
    events = [start(10, 1), start(1, 0), start(11, 10), start(12, 1), ended(11)]
    assert [(depth, row[0], row[2]) for depth, row in grid.tree(events)] == [
        (0, "start", 1),
        (1, "start", 10),
        (2, "start", 11),
        (1, "start", 12),
        (1, "end", 11),
    ]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_every_row_is_in_the_tree_whatever_the_parents_are(pairs):
    """A guest can say that two processes are each other's parents."""
    rows = list(grid.tree([start(pid, ppid) for pid, ppid in pairs]))
    assert sorted(row[2] for _, row in rows) == sorted(pid for pid, _ in pairs)
    depths = [depth for depth, _ in rows]
    assert all(after <= before + 1 for before, after in pairwise([-1, *depths]))


def test_the_timeline():
    new = process(5, comm="ls", args=("ls",))
    events = [
        start(5),
        ProcessExec(old=process(5), new=new, occasion=SEEN),
        ended(5, 9),
        start(6, start_ns=None),
    ]
    utc = datetime.timezone.utc
    began = datetime.datetime(2023, 11, 14, 22, 13, 20, 250000, utc)
    seen = datetime.datetime(2023, 11, 14, 22, 13, 21, 250000, utc)
    assert list(grid.timeline(events)) == [
        ("Process 5 cat (0xffff888000001000) started", "created", began),
        ("Process 5 ls (0xffff888000001000) executes ls", "changed", seen),
        ("Process 5 cat (0xffff888000001000) ended: SIGKILL", "modified", seen),
    ]


class Listed:
    """A source of given events; each is preceded by a note."""

    def __init__(self, events):
        self._given, self._notes = events, []

    def events(self):
        for number, event in enumerate(self._given):
            self._notes.append(f"note {number}")
            yield event
        self._notes.append("the end")

    def notes(self):
        return self._notes


def test_selection_and_notes():
    events = [start(1, 0), start(5), ended(5), ended(6)]

    def select(**options):
        chosen = sources.Options(location="x", **options)
        return [
            one if isinstance(one, str) else (type(one).__name__, one.process.pid)
            for one in sources.select(Listed(events), chosen)
        ]

    assert select() == [
        "note 0",
        ("ProcessStart", 1),
        "note 1",
        ("ProcessStart", 5),
        "note 2",
        ("ProcessEnd", 5),
        "note 3",
        ("ProcessEnd", 6),
        "the end",
    ]
    assert [one for one in select(pids=frozenset({5})) if not isinstance(one, str)] == [
        ("ProcessStart", 5),
        ("ProcessEnd", 5),
    ]
    assert [one for one in select(new=True, count=1) if not isinstance(one, str)] == [("ProcessEnd", 5)]
