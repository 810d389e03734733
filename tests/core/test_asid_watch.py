"""What is trapped and what is read, story by story, in a guest that is watched by its asids."""

import pytest

from live.core import asid_watch as module
from live.core.asids import AsidMode
from live.core.traps import Action, TrapRequest
from tests.core.asid_guest import (
    FORKS,
    KERNEL,
    NOT_TRAPPED,
    READ,
    VFORK,
    Guest,
    child_of,
    corpse,
    image,
    mark_of,
    process,
)

INIT, SHELL = process(1), process(2)


@pytest.fixture
def guest():
    return Guest(INIT, SHELL)


def fork_of(guest, parent=SHELL, pid=5, **changes):
    """A child that was seen."""
    child = guest.put(child_of(parent, pid, **changes))
    assert guest.change(child) == [("start", pid, "fork", parent.comm.decode())]
    return child


# -- what is trapped


def test_before_the_first_look_only_words_are_compared(guest):
    assert guest.first == TrapRequest(words=Guest.words)


def test_what_was_running_is_settled_and_all_else_is_trapped(guest):
    assert guest.attached == [("start", 1, "running", "c1"), ("start", 2, "running", "c2")]
    request = guest.stepper.request
    assert request.settled == {KERNEL, INIT.asid, SHELL.asid}
    assert (request.unsettled_asids, request.unsettled_syscalls) == (Action.RECORD, Action.HOLD)
    assert {word.gpa for word in request.words} == {FORKS, FORKS + 8, mark_of(INIT), mark_of(SHELL)}
    rules = (request.syscalls, request.compat_syscalls, request.call_flags)
    assert rules == (Guest.syscalls, Guest.compat_syscalls, Guest.call_flags)
    assert request.split_asids
    assert guest.call(SHELL) is guest.change(INIT) is guest.change(KERNEL) is NOT_TRAPPED


def test_fences_are_asked_for_when_they_are_wanted(guest):
    before = guest.stepper.request
    assert (before.moved_fence, before.entries) == (None, frozenset())
    guest.stepper.fence()
    after = guest.stepper.request
    assert (after.moved_fence, after.entries) == (Guest.waits, Guest.entries)


def test_every_change_is_held_for_whoever_asks_and_settles_and_reads_nothing(guest):
    assert guest.stepper.request.asid_changes is Action.OFF
    guest.stepper.trap_every_change()
    before = guest.stepper.request
    assert before.asid_changes is Action.HOLD
    for _ in range(2 * module._OFTEN):
        assert guest.change(SHELL) == guest.change(INIT) == guest.change(KERNEL) == []
    assert guest.reads == []
    assert guest.stepper.request.settled == before.settled


def test_the_request_is_the_same_object_while_nothing_changes(guest):
    child = fork_of(guest)
    request = guest.stepper.request
    guest.look()
    guest.change(KERNEL)
    guest.change(0x7_8000)  # of nobody, as far as we know
    guest.replace(child, comm=b"renamed")
    guest.look()
    assert guest.stepper.request is request
    guest.drop(SHELL)
    guest.look()
    assert guest.stepper.request.settled == request.settled - {SHELL.asid}


def test_of_words_those_of_the_newest_tasks_are_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST_WORDS", 3)
    guest = Guest(*(process(pid) for pid in range(1, 6)))
    newest = [process(pid) for pid in (3, 4, 5)]
    assert [word.gpa for word in guest.stepper.request.words][2:] == [mark_of(one) for one in newest]
    fork_of(guest, newest[2], 6)
    words = [word.gpa for word in guest.stepper.request.words]
    assert words[:2] == [FORKS, FORKS + 8]
    assert words[2:] == [mark_of(one) for one in (*newest[1:], process(6))]
    assert len(guest.watch._words._noted) <= 4


def test_a_word_is_compared_once_and_stays_when_its_task_is_gone(guest):
    child = fork_of(guest)
    words = guest.stepper.request.words
    guest.drop(guest.put(corpse(child)))
    guest.look()
    assert guest.stepper.request.words is words
    fork_of(guest, pid=6, address=child.address)
    assert guest.stepper.request.words is words
    guest.put(corpse(guest.tasks[child.address]))
    assert guest.change(SHELL) == [("end", 6, "exit")]


def test_kernel_threads_and_the_dead_have_no_words():
    guest = Guest(process(2, kernel=True, asid=0), corpse(process(3)))
    assert guest.stepper.request.words == Guest.words


# -- births


def test_a_fork_is_seen_at_a_word_that_has_moved(guest):
    child = guest.put(child_of(SHELL, 5))
    assert guest.change(child) == [("start", 5, "fork", "c2")]
    assert guest.reads == ["newest"]
    assert guest.settled(child)
    assert guest.call(child) is NOT_TRAPPED


def test_a_fork_is_seen_by_a_look_at_all_where_it_is_not_told_which_word_has_moved():
    guest = Guest(INIT, SHELL, tells_words=False)
    fork_of(guest)
    assert guest.reads == ["list"]


def test_what_came_and_went_is_no_task(guest):
    child = guest.put(child_of(SHELL, 5))
    guest.drop(child)
    assert guest.change(SHELL) == []


def test_a_child_that_is_not_complete_is_not_shown_before_it_is(guest):
    child = guest.put(child_of(SHELL, 5))
    guest.unfinished_at.add(child.address)
    assert guest.change(SHELL) == []
    assert not guest.settled(child)
    guest.unfinished_at.clear()
    assert guest.change(child) == []
    assert guest.call(child) == [("start", 5, "fork", "c2")]
    assert guest.settled(child)


def test_who_was_shown_is_not_taken_for_incomplete(guest):
    child = fork_of(guest)
    guest.unfinished_at.add(child.address)
    guest.put(child._replace(uid=7))
    guest.look()
    assert guest.settled(child)


# -- images


def exec_seen(guest, old, new):
    """An image is seen at its first system call; the old asid is nobody's."""
    assert guest.change(new) == [], "recorded, and nothing is read"
    assert guest.reads == []
    assert guest.call(new) == [
        ("end", old.identity.pid, "exec"),
        ("exec", old.identity.pid, old.comm.decode(), "new"),
        ("start", old.identity.pid, "exec", "new"),
    ]
    assert guest.settled(new)
    assert not guest.settled(old)
    assert guest.call(new) is NOT_TRAPPED


def test_an_exec_is_seen_at_the_first_call_of_its_image(guest):
    child = fork_of(guest)
    guest.reads.clear()
    new = guest.put(image(child))
    exec_seen(guest, child, new)
    assert guest.reads == [new.address], "the caller alone"


def test_an_asid_that_was_left_for_one_that_is_not_known_is_trapped(guest):
    child = fork_of(guest)
    guest.put(image(child))
    guest.change(image(child))
    assert not guest.settled(child)
    assert guest.settled(SHELL)


def test_an_asid_that_two_have_is_not_left_by_one_of_them(guest):
    guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    guest.change(SHELL)
    guest.change(0x7_8000)
    assert guest.settled(SHELL)


def test_a_task_inside_execve_is_complete_at_a_call_of_its_asid(guest):
    """Whatever its flags say: a task that makes a call is not inside another one."""
    child = fork_of(guest)
    guest.put(child._replace(transient=True))
    assert guest.look() == []
    assert not guest.settled(child)
    new = guest.put(image(child, transient=True))
    guest.reads.clear()
    exec_seen(guest, child, new)


def test_it_is_complete_where_the_caller_is_not_known_too(guest):
    """Though nothing of it has changed since the look before."""
    child = fork_of(guest)
    new = guest.put(image(child, transient=True))
    assert guest.look() == []
    assert guest.runs(new, known=False)[-1] == ("start", 5, "exec", "new")
    assert guest.settled(new)


def test_an_exec_that_failed_changes_nothing(guest):
    child = fork_of(guest)
    guest.put(child._replace(transient=True))
    guest.look()
    assert not guest.settled(child)
    guest.put(child)
    assert guest.call(child) == []
    assert guest.settled(child)


def test_an_exec_by_another_thread_leaves_the_old_asid_to_nobody(guest):
    """It has its leader's identity, and a task at another address."""
    child = fork_of(guest)
    thread = image(child, address=child.address + 0x100, transient=True)
    guest.put(thread)
    assert guest.runs(thread)[-1] == ("start", 5, "exec", "new")
    assert guest.settled(thread)
    assert not guest.settled(child)
    assert guest.watch.identity_at(child.address) is None
    guest.put(corpse(thread))
    assert guest.change(SHELL) == [("end", 5, "exit")]


def test_a_caller_that_cannot_be_told_costs_a_look_at_all(guest):
    child = fork_of(guest)
    new = guest.put(image(child))
    guest.change(new)
    guest.reads.clear()
    assert guest.call(new, known=False)[-1] == ("start", 5, "exec", "new")
    assert guest.reads == ["list"]
    assert guest.settled(new)


def test_a_caller_that_runs_in_another_asid_is_not_believed(guest):
    child = fork_of(guest)
    guest.change(0x7_8000)
    guest.reads.clear()
    assert guest.call(child, asid=0x7_8000) == []
    assert guest.reads == [child.address, "list"]
    assert guest.settled(0x7_8000), "no task has it"


# -- ends


def test_a_death_is_seen_at_the_word_that_tells_of_it(guest):
    child = fork_of(guest)
    guest.reads.clear()
    guest.put(corpse(child, 3 << 8))
    assert guest.change(SHELL) == [("end", 5, "exit")]
    assert guest.reads == [child.address], "neither the list nor its end"
    assert not guest.settled(child)


def test_one_that_is_reaped_is_found_gone_by_a_look(guest):
    child = fork_of(guest)
    guest.drop(child)
    guest.change(SHELL)
    assert guest.look() == [("end", 5, "gone")]
    assert not guest.settled(child)


def test_where_another_task_has_its_place_the_whole_list_is_read(guest):
    child = fork_of(guest)
    guest.drop(guest.put(corpse(child)))
    guest.put(child_of(SHELL, 6, address=child.address))
    guest.reads.clear()
    assert guest.change(SHELL) == [("end", 5, "gone"), ("start", 6, "fork", "c2")]
    assert guest.reads[-1] == "list"


def test_a_leader_that_has_left_its_threads_behind_keeps_its_asid(guest):
    child = fork_of(guest)
    left = guest.put(child._replace(asid=0, mm=0, exit_state=0x20, threads=1))
    assert guest.change(SHELL) == []
    assert guest.settled(child)
    assert mark_of(left) in {word.gpa for word in guest.stepper.request.words}
    guest.put(corpse(left))
    guest.moved.add(mark_of(left))
    assert guest.change(SHELL) == [("end", 5, "exit")]
    assert not guest.settled(child)


def test_a_leader_is_known_by_what_was_shown_if_its_place_is_not(guest):
    """It was another thread's exec, and it exits before that was seen."""
    child = fork_of(guest)
    guest.put(child._replace(address=child.address + 0x100, asid=0, mm=0, exit_state=0x20))
    guest.look()
    assert guest.settled(child)


# -- another process in the same asid


def vfork(guest, parent=SHELL, *, known=True):
    guest.reads.clear()
    assert guest.call(parent, VFORK, known=known) == []
    assert guest.reads == ["list"]
    assert not guest.settled(parent)
    assert guest.stepper.request.pending == {parent.asid}


def test_a_child_that_shares_an_asid_is_waited_for(guest):
    vfork(guest)
    child = guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    assert guest.call(child) == [("start", 5, "fork", "c2")]
    assert guest.settled(SHELL)
    assert not guest.stepper.request.pending


def test_a_child_that_shares_an_asid_may_be_seen_at_a_word_that_has_moved(guest):
    vfork(guest)
    guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    assert guest.change(KERNEL) == [("start", 5, "fork", "c2")]
    assert guest.settled(SHELL)


def test_a_child_of_somebody_else_is_not_the_one_that_is_waited_for(guest):
    vfork(guest)
    other = guest.put(child_of(INIT, 5, asid=SHELL.asid))
    assert guest.call(other) == [("start", 5, "fork", "c1")]
    assert not guest.settled(SHELL)


def test_who_makes_another_call_has_no_child_to_wait_for(guest):
    vfork(guest)
    assert guest.call(SHELL, READ) == []
    assert guest.settled(SHELL)


def test_a_child_is_waited_for_through_many_calls_if_nobody_knows_who_makes_them(guest):
    vfork(guest, known=False)
    for _ in range(module._MOST_CALLS - 1):
        assert guest.call(SHELL, READ, known=False) == []
        assert not guest.settled(SHELL)
    guest.call(SHELL, READ, known=False)
    assert guest.settled(SHELL)


def test_a_child_is_known_where_its_parent_is_not(guest):
    vfork(guest, known=False)
    guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    assert guest.change(KERNEL) == [("start", 5, "fork", "c2")]
    assert guest.settled(SHELL)


def test_two_callers_wait_each_for_its_own_child():
    other = process(3, asid=SHELL.asid)
    guest = Guest(INIT, SHELL, other)
    vfork(guest, SHELL)
    vfork(guest, other)
    guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    guest.change(KERNEL)
    assert not guest.settled(SHELL)
    guest.put(child_of(other, 6, asid=SHELL.asid))
    guest.change(KERNEL)
    assert guest.settled(SHELL)


def test_two_callers_that_are_not_known_are_both_answered(guest):
    vfork(guest, SHELL, known=False)
    assert guest.call(INIT, VFORK, known=False) == []
    guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    guest.put(child_of(INIT, 6, asid=INIT.asid))
    guest.change(KERNEL)
    assert guest.settled(SHELL)
    assert guest.settled(INIT)


def test_an_asid_that_all_have_left_is_not_waited_for(guest):
    vfork(guest)
    guest.drop(SHELL)
    guest.look()
    assert not guest.stepper.request.pending
    assert not guest.settled(SHELL)


@pytest.mark.parametrize("torn", [False, True])
def test_a_call_by_nobody_on_the_list_settles_nothing(guest, torn):
    """A leader that had left its threads behind when we attached, or a list that lost its place."""
    guest.torn = torn
    assert guest.call(INIT, VFORK, asid=0x7_8000) == []
    request = guest.stepper.request
    assert (request.pending, 0x7_8000 in request.settled) == ({0x7_8000}, False)
    guest.call(SHELL, VFORK)
    assert guest.stepper.request.pending == {SHELL.asid}
    assert not guest.settled(0x7_8000)


def test_a_child_inside_execve_is_not_settled_when_the_other_one_is_answered():
    other = process(3, asid=SHELL.asid)
    guest = Guest(INIT, SHELL, other)
    vfork(guest, SHELL)
    vfork(guest, other)
    guest.put(child_of(SHELL, 5, asid=SHELL.asid))
    guest.change(KERNEL)
    guest.put(guest.tasks[SHELL.address]._replace(transient=True))
    guest.look()
    assert guest.call(other) == []
    assert not guest.settled(SHELL)


# -- asids of nobody


def test_an_asid_of_nobody_is_looked_at_now_and_then_and_then_left_alone(guest):
    for _ in range(module._OFTEN):
        assert guest.change(0x7_8000) == []
        guest.change(KERNEL)
    assert guest.reads == []
    assert guest.change(0x7_8000) == []
    assert guest.reads == ["list"]
    guest.change(KERNEL)
    assert guest.change(0x7_8000) is NOT_TRAPPED


def often(guest, asid):
    for _ in range(module._OFTEN + 1):
        guest.change(asid)
        guest.change(KERNEL)


def test_an_asid_in_which_calls_are_made_is_not_looked_at():
    """It is trapped while a child is waited for, however often its tasks run."""
    other = process(3, asid=SHELL.asid)
    guest = Guest(INIT, SHELL, other)
    vfork(guest)
    guest.reads.clear()
    for _ in range(2 * module._OFTEN):
        guest.change(KERNEL)
        assert guest.runs(other) == []
    assert "list" not in guest.reads


def test_an_asid_of_nobody_may_be_a_processes_where_a_word_has_moved():
    guest = Guest(INIT, SHELL, tells_words=False)
    often(guest, 0x7_8000)
    assert guest.settled(0x7_8000)
    guest.put(child_of(SHELL, 5))
    guest.change(SHELL)
    assert not guest.settled(0x7_8000)


def test_an_asid_of_nobody_may_be_a_processes_where_a_word_is_told_that_has_moved(guest):
    often(guest, 0x7_8000)
    child = fork_of(guest)
    new = guest.put(image(child, asid=0x7_8000))
    guest.reads.clear()
    exec_seen(guest, child, new)


@pytest.mark.parametrize("transient", [False, True])
def test_an_asid_of_nobody_that_a_look_finds_a_task_in_is_a_processes(guest, transient):
    often(guest, 0x7_8000)
    child = guest.put(child_of(SHELL, 5, asid=0x7_8000, transient=transient))
    guest.moved.clear()
    guest.look()
    assert guest.settled(child) != transient
    guest.replace(child, transient=False)
    guest.look()
    fork_of(guest, pid=6)
    assert guest.settled(child)


# -- lists and tables


def test_a_torn_list_proves_no_absence(guest):
    child = fork_of(guest)
    guest.drop(child)
    guest.torn = True
    guest.look()
    assert guest.settled(child)
    guest.moved.clear()
    often(guest, 0x7_8000)
    assert not guest.settled(0x7_8000)
    guest.torn = False
    assert guest.look() == [("end", 5, "gone")]
    assert not guest.settled(child)


ODD = {"asid": 0x20_1000, "mm": 0x20_1000}


def test_tables_whose_roots_differ_in_one_bit_are_those_of_one_process(guest):
    assert guest.stepper.request.split_asids
    assert guest.change(SHELL.asid | 0x1000) is NOT_TRAPPED


@pytest.mark.parametrize("found", ["at once", "at a word", "at a call"])
def test_a_root_at_an_odd_page_means_that_a_process_has_one_table(found):
    odd, beside = process(3, **ODD), process(4, asid=ODD["asid"] & ~0x1000)
    if found == "at once":
        guest = Guest(INIT, SHELL, odd, beside)
    else:
        guest = Guest(INIT, SHELL)
        guest.put(odd)
        if found == "at a call":
            guest.moved.clear()
            guest.call(odd)
        else:
            guest.change(odd)
        guest.put(beside)
        guest.change(beside)
    assert not guest.stepper.request.split_asids
    guest.runs(odd)
    guest.runs(beside)
    request = guest.stepper.request
    assert {odd.asid, beside.asid} <= request.settled
    guest.put(corpse(odd))
    assert guest.change(SHELL) == [("end", 3, "exit")]
    assert not guest.settled(odd)
    assert guest.settled(beside)


@pytest.mark.parametrize("tells", [True, False])
def test_what_was_known_is_known_when_one_table_is_found(tells):
    """Of the tasks from before a death is seen, too."""
    guest = Guest(INIT, SHELL, tells_words=tells)
    guest.put(child_of(SHELL, 3, **ODD))
    guest.change(SHELL)
    guest.put(corpse(SHELL))
    assert guest.change(INIT) == [("end", 2, "exit")]


def test_an_asid_of_nobody_is_forgotten_when_one_table_is_found(guest):
    """It may have been that of another page."""
    often(guest, 0x7_9000)
    assert guest.settled(0x7_8000)
    guest.put(process(3, **ODD))
    guest.moved.clear()
    guest.look()
    assert not guest.settled(0x7_8000)


# -- the control


def test_the_control_looks_at_all_at_every_change_and_at_nothing_else():
    guest = Guest(INIT, SHELL, mode=AsidMode.DIFF)
    assert guest.first == guest.stepper.request == TrapRequest(asid_changes=Action.HOLD)
    child = guest.put(child_of(SHELL, 5))
    guest.unfinished_at.add(child.address)
    assert guest.change(child) == [("start", 5, "fork", "c2")]
    assert guest.reads == ["list"]
    assert guest.call(child) is NOT_TRAPPED


def test_the_control_tells_asids_apart_as_the_rules_do():
    guest = Guest(INIT, SHELL, mode=AsidMode.DIFF)
    guest.put(child_of(SHELL, 3, **ODD))
    guest.change(ODD["asid"])
    assert not guest.stepper.request.split_asids


def test_the_control_counts_what_it_takes_for_complete():
    guest = Guest(INIT, SHELL, mode=AsidMode.DIFF)
    guest.put(image(SHELL, transient=True))
    assert guest.change(INIT)[-1] == ("start", 2, "exec", "new")
    assert guest.stepper.counts.premature == 1
    guest.put(corpse(guest.tasks[SHELL.address])._replace(transient=True))
    assert guest.change(SHELL) == [("end", 2, "exit")]
    assert guest.stepper.counts.premature == 1


def test_the_rules_take_nothing_for_complete(guest):
    guest.put(image(SHELL, transient=True))
    guest.look()
    assert guest.stepper.counts.premature == 0
