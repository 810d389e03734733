from dataclasses import replace

from live.core import tracker as module
from live.core.events import EndReason, ExitStatus, Identity, ProcessEnd, ProcessStart
from live.core.snapshot import Happening, Moment
from live.core.tracker import REWIND, Tracker
from tests.core.build import NOW, describe, drain, snapshot, task, tracker


def test_what_runs_at_attach_is_announced_once():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(2, comm=b"cron", generation=1)))
    assert drain(t) == [("start", 1, "running", "sh"), ("start", 2, "running", "cron")]
    t.receive_tasks(snapshot(task(1), task(2, comm=b"cron", generation=1)))
    assert drain(t) == []


def test_fork_exec_and_death_seen_one_by_one():
    t = tracker()
    t.receive_tasks(snapshot(task(1)))
    drain(t)
    t.receive_tasks(snapshot(task(1), task(5), forks=1))
    t.receive_tasks(snapshot(task(1), task(5, comm=b"true", generation=1), forks=1))
    t.receive_tasks(
        snapshot(task(1), task(5, comm=b"true", generation=1, dead=True, exit_code=3 << 8), forks=1)
    )
    t.receive_tasks(snapshot(task(1), forks=1))
    assert drain(t) == [
        ("start", 5, "fork", "sh"),
        ("end", 5, "exec"),
        ("exec", 5, "sh", "true"),
        ("start", 5, "exec", "true"),
        ("end", 5, "exit"),
    ]


def test_a_process_first_seen_after_its_exec_has_one_start():
    t = tracker()
    t.receive_tasks(snapshot(task(1)))
    t.receive_tasks(snapshot(task(1), task(5, comm=b"true", generation=1), forks=1))
    assert drain(t)[1:] == [("start", 5, "exec", "true")]


def test_a_zombie_at_attach_emits_nothing_ever():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5, dead=True)))
    t.receive_tasks(snapshot(task(1)))
    assert drain(t) == [("start", 1, "running", "sh")]


def test_a_task_inside_execve_keeps_its_old_name_until_it_is_done():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5)))
    t.receive_tasks(snapshot(task(1), task(5, comm=b"half", generation=1, transient=True)))
    assert drain(t) == [("start", 1, "running", "sh"), ("start", 5, "running", "sh")]
    t.receive_tasks(snapshot(task(1), task(5, comm=b"done", generation=1)))
    assert drain(t) == [("end", 5, "exec"), ("exec", 5, "sh", "done"), ("start", 5, "exec", "done")]


def test_a_task_inside_execve_at_attach_was_running():
    t = tracker()
    t.receive_tasks(snapshot(task(5, transient=True)))
    assert drain(t) == []
    t.receive_tasks(snapshot(task(5, comm=b"done", generation=1)))
    assert drain(t) == [("start", 5, "running", "done")]


def test_pid_reuse_is_another_process():
    t = tracker()
    t.receive_tasks(snapshot(task(5, start=1)))
    t.receive_tasks(snapshot(task(5, start=2), forks=1))
    assert drain(t) == [("start", 5, "running", "sh"), ("end", 5, "gone"), ("start", 5, "fork", "sh")]
    assert [p.identity for p in t.live()] == [Identity(5, 2)]


def test_how_a_vanished_process_ended_is_read_from_its_freed_task():
    t = tracker(revisit=lambda t: t._replace(exit_code=9, dead=True))
    t.receive_tasks(snapshot(task(5)))
    t.receive_tasks(snapshot())
    t.next_event()
    end = t.next_event()
    assert isinstance(end, ProcessEnd)
    assert (end.reason, end.status) == (EndReason.SIGNAL, ExitStatus(code=None, signal=9, core=False))
    assert end.process.exited == end.status


def test_a_torn_snapshot_proves_no_absence():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5)))
    drain(t)
    t.receive_tasks(snapshot(task(1), torn=True))
    assert drain(t) == []
    assert t.counts.torn == 1
    t.receive_tasks(snapshot(task(1)))
    assert drain(t) == [("end", 5, "gone")]


def test_what_was_only_ever_seen_inside_execve_is_missed():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=0))
    t.receive_tasks(snapshot(task(1), task(5, transient=True), forks=1))
    t.receive_tasks(snapshot(task(1), task(5, transient=True), forks=1, torn=True))
    assert t.counts.missed == 0
    t.receive_tasks(snapshot(task(1), forks=1))
    assert t.counts.missed == 1
    t.receive_tasks(snapshot(task(1), task(6, transient=True), forks=2))
    t.receive_tasks(snapshot(task(1), task(6, generation=1), forks=2))
    t.receive_tasks(snapshot(task(1), forks=2))
    assert t.counts.missed == 1
    assert [e[:3] for e in drain(t)] == [("start", 1, "running"), ("start", 6, "exec"), ("end", 6, "gone")]


def test_what_a_snapshot_found_inside_execve_and_traps_then_showed_is_not_missed():
    """Seen on 6.1 after holds had run out: a snapshot, EXEC, DEATH, and reaped before the next snapshot."""
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=0))
    t.receive_tasks(snapshot(task(1), task(5, transient=True), forks=1))
    t.receive(Happening(Moment.EXEC, task(5, generation=1)), NOW)
    t.receive(Happening(Moment.DEATH, task(5, generation=1, dead=True)), NOW)
    t.receive_tasks(snapshot(task(1), forks=1))
    assert t.counts.missed == 0
    assert [e[:3] for e in drain(t)] == [("start", 1, "running"), ("start", 5, "exec"), ("end", 5, "exit")]


def test_what_was_inside_execve_when_we_attached_starts_with_the_image_that_its_trap_shows():
    t = tracker()
    t.receive_tasks(snapshot(task(5, transient=True)))
    t.receive(Happening(Moment.EXEC, task(5, comm=b"done", generation=1)), NOW)
    assert drain(t) == [("start", 5, "exec", "done")]


def test_what_was_inside_execve_when_we_attached_and_dies_there_was_running():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5, transient=True)))
    t.receive(Happening(Moment.DEATH, task(5, dead=True, exit_code=9)), NOW)
    assert drain(t) == [("start", 1, "running", "sh"), ("start", 5, "running", "sh"), ("end", 5, "signal")]
    assert (t.counts.late, t.counts.unexpected) == (0, 0)


def test_threads_are_found_and_are_no_processes():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=10))
    t.receive_tasks(snapshot(task(1, threads=3), forks=12, tids=[(1, 1000), (8, 5), (9, 6)]))
    assert t.counts.missed == 0
    assert drain(t) == [("start", 1, "running", "sh")]


def test_the_parent_is_known_by_identity():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5, ppid=1)))
    t.next_event()
    child = t.next_event()
    assert isinstance(child, ProcessStart)
    assert child.process.parent == Identity(1, 1000)


def test_a_parent_that_has_left_the_list_is_not_known():
    t = tracker()
    t.receive_tasks(snapshot(task(5)))
    t.receive_tasks(snapshot())
    t.receive(Happening(Moment.FORK, task(6, ppid=5)), NOW)
    *_, child = iter(t.next_event, None)
    assert (child.process.ppid, child.process.parent) == (5, None)


def test_what_a_snapshot_counted_as_missed_and_its_death_then_shows_is_not_missed():
    t = tracker()
    t.receive_tasks(snapshot())
    t.receive_tasks(snapshot(forks=2))  # two births were lost; one is reaped behind the fence of its death
    assert t.counts.missed == 2
    t.receive(Happening(Moment.DEATH, task(5, dead=True)), NOW)
    t.receive_tasks(snapshot(forks=2))
    assert (t.counts.missed, t.counts.late, t.counts.starts, t.counts.ends) == (1, 1, 1, 1)


def test_what_the_table_does_not_list_is_counted_and_ignored():
    t = tracker()
    dead = task(5, dead=True)
    t.receive(Happening(Moment.FORK, dead), NOW)
    t.receive(Happening(Moment.DEATH, dead), NOW)
    drain(t)
    for moment in (Moment.FORK, Moment.EXEC):
        t.receive(Happening(moment, task(5, generation=7)), NOW)
    assert drain(t) == []
    assert t.counts.unexpected == 2


def test_a_trap_that_repeats_what_a_snapshot_showed_keeps_the_newer_task():
    seen = []
    t = tracker(revisit=seen.append)
    newer = task(5, generation=1, comm=b"renamed")
    t.receive_tasks(snapshot())
    t.receive_tasks(snapshot(newer))
    t.receive(Happening(Moment.EXEC, task(5, generation=1)), NOW)
    t.receive_tasks(snapshot())
    assert seen == [newer]
    assert t.counts.execs == 0


def test_those_that_are_gone_are_forgotten_in_their_order(monkeypatch):
    monkeypatch.setattr(module, "_MAX_GONE", 2)
    t = tracker()
    t.receive_tasks(snapshot())
    for pid in (5, 6, 7):
        t.receive_tasks(snapshot(task(pid)))
    t.receive_tasks(snapshot())
    drain(t)
    for pid in (5, 6, 7):
        t.receive(Happening(Moment.DEATH, task(pid, dead=True)), NOW)
    assert drain(t) == [("start", 5, "fork", "sh"), ("end", 5, "exit")]
    assert (t.counts.late, t.counts.unexpected) == (1, 0)


def test_what_only_a_torn_snapshot_found_is_not_missed():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=1))
    t.receive_tasks(snapshot(task(1), task(2), forks=2, torn=True))
    t.receive_tasks(snapshot(task(1), forks=3))
    shown = [event for event in drain(t) if event[1] == 2]
    assert [event[0] for event in shown] == ["start", "end"]
    assert t.counts.missed == 1, "of two that were created one was shown"


def test_what_only_a_torn_snapshot_found_inside_execve_is_missed():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=1))
    t.receive_tasks(snapshot(task(1), task(2, transient=True), forks=2, torn=True))
    t.receive_tasks(snapshot(task(1), forks=2))
    assert [event for event in drain(t) if event[1] == 2] == []
    assert t.counts.missed == 1


def test_events_say_what_was_missed_up_to_their_snapshot():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=1))
    t.receive_tasks(snapshot(task(1), forks=3, time_ns=70))
    t.receive_tasks(snapshot(task(1), task(5), forks=5, time_ns=100))
    first, second = t.next_event(), t.next_event()
    assert (first.occasion.missed, first.occasion.late_ns) == (0, 0)
    assert (second.occasion.missed, second.occasion.late_ns) == (3, 30)


def test_what_a_hostile_list_left_out_is_there_again():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5)))
    t.receive_tasks(snapshot(task(1)))
    t.receive_tasks(snapshot(task(1), task(5)))
    assert [event[:2] for event in drain(t) if event[1] == 5] == [("start", 5), ("end", 5), ("start", 5)]
    assert {process.pid for process in t.live()} == {1, 5}


def test_a_guest_that_goes_back_has_those_again_that_had_died():
    t = tracker()
    shell, zombie = task(1), task(2, dead=True, fresh=False)
    t.receive_tasks(snapshot(shell, zombie, task(3), task(4), forks=10))
    t.receive_tasks(snapshot(shell, zombie, task(3, dead=True), task(5), forks=11))
    drain(t)
    back = replace(snapshot(shell, zombie, task(3), task(4), forks=10), trigger=REWIND)
    t.receive_tasks(back)
    assert drain(t) == [("end", 5, "gone"), ("start", 3, "running", "sh"), ("start", 4, "running", "sh")]
    t.receive_tasks(snapshot(shell, task(3, dead=True), task(4), forks=10))
    assert drain(t) == [("end", 3, "exit")]
    assert (t.counts.missed, t.counts.unexpected) == (0, 0)


def test_a_task_that_a_trap_is_about_is_shown_and_counted():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=1))
    drain(t)
    t.receive_task(task(5), NOW)
    assert drain(t) == [("start", 5, "fork", "sh")]
    t.receive_task(task(5, comm=b"true", generation=1), NOW)
    t.receive_task(task(5, comm=b"true", generation=1, dead=True), NOW)
    assert drain(t)[1:] == [("exec", 5, "sh", "true"), ("start", 5, "exec", "true"), ("end", 5, "exit")]
    t.receive_tasks(snapshot(task(1), forks=2))
    assert (drain(t), t.counts.missed, t.counts.late) == ([], 0, 0)


def test_a_task_inside_execve_that_a_trap_is_about_is_not_shown_yet():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5), forks=2))
    drain(t)
    t.receive_task(task(5, comm=b"half", generation=1, transient=True), NOW)
    t.receive_task(task(6, transient=True), NOW)
    assert drain(t) == []
    t.receive_tasks(snapshot(task(1), forks=3))
    assert drain(t) == [("end", 5, "gone")]
    assert t.counts.missed == 1, "the other one was never shown"


def test_a_task_that_a_trap_is_about_says_how_it_is_called_at_its_end():
    names = []
    t = tracker(revisit=lambda t: names.append(t.comm))
    t.receive_tasks(snapshot(task(5)))
    t.receive_task(task(5, comm=b"renamed"), NOW)
    assert drain(t)[1:] == []
    t.receive_task(task(5, comm=b"half", transient=True), NOW)
    t.receive_tasks(snapshot())
    assert names == [b"renamed"]


def test_a_task_that_is_there_when_we_attach_was_running():
    t = tracker()
    t.receive_tasks(snapshot(task(5, transient=True)))
    t.receive_task(task(5), NOW)
    assert drain(t) == [("start", 5, "running", "sh")]


def test_a_task_is_described_as_it_stands():
    stood = []

    def describing(t, *, standing):
        stood.append(standing)
        return describe(t)

    t = Tracker(describing)
    t.receive_tasks(snapshot())
    t.receive_task(task(5), NOW, standing=True)
    t.receive_task(task(6), NOW)
    assert stood == [True, False]


def test_what_was_shown_last_of_a_process():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5), task(6, transient=True)))
    assert t.shown(Identity(5, 5000)).comm == "sh"
    assert t.shown(Identity(6, 6000)) is t.shown(Identity(5, 1)) is None
    t.receive_task(task(5, comm=b"true", generation=1), NOW)
    assert (t.shown(Identity(5, 5000)).comm, t.shown(Identity(5, 5000)).generation) == ("true", 1)
    t.receive_task(task(5, generation=1, dead=True), NOW)
    assert t.shown(Identity(5, 5000)) is None


def test_new_processes_are_as_late_as_the_trap_and_ends_as_the_look_before():
    """Where a trap comes before anything that counts can happen (`live.core.asids`)."""
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(2)))
    t.receive_tasks(snapshot(task(1), task(5), forks=1, time_ns=1000), 7)
    events = list(iter(t.next_event, None))[2:]
    late = {type(event).__name__: event.occasion.late_ns for event in events}
    assert late == {"ProcessEnd": 1000, "ProcessStart": 7}
