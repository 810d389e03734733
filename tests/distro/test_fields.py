"""How fields are compared, on records made by hand."""

from __future__ import annotations

from tests.distro import fields, looks
from tests.guest.truth import Truth, TruthExec, TruthFork, TruthOther

START = 5 * looks.TICK_NS + 7


def _truth(others=()):
    common = {"cpu": 0, "by": 1, "tgid": 50, "ppid": 1, "start": START, "comm": "sh"}
    return Truth(
        events=(
            TruthFork(ts=100, pid=50, kernel=False, **common),
            TruthExec(ts=200, filename="/bin/sh", **common),
            *others,
        )
    )


def _look(why, begin, **values):
    return looks.Look(why=why, begin=begin, end=begin + 5, pid=50, start=5, values=values)


def _document(reason, **process):
    return {
        "process": {"pid": 50, **process},
        "pse": {
            "event": "ProcessStart" if reason in ("fork", "exec") else "ProcessEnd",
            "reason": reason,
            "start_boottime": START,
        },
    }


def _counts(found, *documents, others=()):
    result = fields.compare(_truth(others), found, documents)
    count = result.counts["working_directory"]
    return {name: getattr(count, name) for name in ("right", "moved", "later", "unreadable", "wrong")}


def _only(**named):
    return {"right": 0, "moved": 0, "later": 0, "unreadable": 0, "wrong": 0, **named}


def test_a_held_look_decides():
    found = [_look("held", 210, working_directory="/a"), _look("comm", 300, working_directory="/b")]
    assert _counts(found, _document("exec", working_directory="/a")) == _only(right=1)
    assert _counts(found, _document("exec", working_directory="/b")) == _only(moved=1)
    assert _counts(found, _document("exec", working_directory="/c")) == _only(wrong=1)
    assert _counts(found, _document("exec")) == _only(unreadable=1)


def test_without_one_the_process_may_have_changed_it():
    found = [_look("exec", 210, working_directory="/a")]
    call = TruthOther(ts=205, cpu=0, by=50, name="sys_enter", text="NR 80 (0, 0, 0, 0, 0, 0)")
    assert _counts(found, _document("exec", working_directory="/a")) == _only(right=1)
    assert _counts(found, _document("exec", working_directory="/c")) == _only(wrong=1)
    assert _counts(found, _document("exec", working_directory="/c"), others=[call]) == _only(later=1)
    assert _counts(found, _document("exec"), others=[call]) == _only(later=1)


def test_an_image_shows_before_its_exec_is_done():
    found = [_look("comm", 190, working_directory="/b"), _look("fork", 110, working_directory="/a")]
    call = TruthOther(ts=180, cpu=0, by=50, name="sys_enter", text="NR 59 (0, 0, 0, 0, 0, 0)")
    fork = _document("fork", working_directory="/b")
    assert _counts(found, fork) == _only(moved=1)
    assert _counts(found, fork, others=[call]) == _only(wrong=1)


def test_a_look_belongs_to_its_image():
    found = [_look("fork", 110, working_directory="/a"), _look("exec", 210, working_directory="/b")]
    fork, execed = _document("fork", working_directory="/a"), _document("exec", working_directory="/b")
    assert _counts(found, fork, execed) == _only(right=2)
    assert _counts([_look("fork", 198, working_directory="/a")], fork, execed) == _only()


def test_what_proc_cannot_say_need_not_be_read():
    found = [_look("held", 210, working_directory=None)]
    assert _counts(found, _document("exec")) == _only(right=1)


def test_bytes_that_are_no_text():
    assert fields.same("args", ["a\\xff"], ["a\udcff"])
    assert fields.same("executable", "/a\udcff", "/a\udcff")
    assert not fields.same("args", ["a"], ["a", ""])


def test_a_line_of_looks():
    stat = b"50 (a) b) S 1 50 50 " + b"0 " * 15 + b"5 0\n"
    status = b"Name:\ta\nTgid:\t50\nPid:\t50\nUid:\t1\t2\t2\t2\nGid:\t3\t4\t4\t4\nNSpid:\t50\t7\n"
    raw = {
        "stat": stat,
        "status": status,
        "cmdline": b"a\0\0b\0",
        "cgroup": b"1:x:/no\n0::/yes\n",
        "exe": b"/jail/bin/a",
        "my_exe": b"/bin/a",
        "ns_pid": b"pid:[42]",
    }
    line = "held 7 50 " + " ".join(f"{name}={data.hex()}" for name, data in raw.items()) + " 9 ."
    (look,), lost = looks.parse(f"{line}\nlost 3 0 0 .\nheld 7 50 stat=35\n{line[:-1]}torn= 9 .\n")
    assert (look.why, look.begin, look.end, look.pid, look.start, lost) == ("held", 7, 9, 50, 5, 1)
    assert look.values == {
        "name": "a) b",
        "parent.pid": 1,
        "group_leader.pid": 50,
        "session_leader.pid": 50,
        "ns_pid": 7,
        "real_user.id": "1",
        "user.id": "2",
        "real_group.id": "3",
        "group.id": "4",
        "args": ["a", "", "b"],
        "executable": "/bin/a",
        "working_directory": None,
        "cgroup": "/yes",
        "namespaces.pid": 42,
    }
    assert look.outside == {"executable": "/jail/bin/a"}
