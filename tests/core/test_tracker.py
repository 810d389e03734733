import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live.core.events import EndReason, ExitStatus, Identity, ProcessEnd, ProcessStart
from live.core.lifecycle import TRANSITIONS, State, diagram
from live.core.snapshot import Happening, Moment, difference
from tests.core.build import NOW, drain, snapshot, task, tracker


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


def test_a_torn_look_proves_no_absence():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5)))
    drain(t)
    t.receive_tasks(snapshot(task(1), torn=True))
    assert drain(t) == []
    assert t.counts.torn == 1
    t.receive_tasks(snapshot(task(1)))
    assert drain(t) == [("end", 5, "gone")]


def test_missed_is_created_less_found():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=100))
    t.receive_tasks(snapshot(task(1), task(7), forks=105))
    assert t.counts.missed == 4
    t.receive_tasks(snapshot(task(1), task(7), forks=200, torn=True))
    assert t.counts.missed == 4
    t.receive_tasks(snapshot(task(1), task(9), forks=107))
    assert t.counts.missed == 5


def test_what_is_on_the_list_before_the_kernel_counts_it_is_not_missed():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=100))
    t.receive_tasks(snapshot(task(1), task(7), forks=100))
    t.receive_tasks(snapshot(task(1), task(7), forks=100))
    t.receive_tasks(snapshot(task(1), task(7), forks=101))
    assert t.counts.missed == 0
    t.receive_tasks(snapshot(task(1), task(7), forks=103))
    assert t.counts.missed == 2


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


def test_what_a_look_found_inside_execve_and_traps_then_showed_is_not_missed():
    """Seen on 6.1 after holds had run out: a snapshot, EXEC, DEATH, and reaped before the next snapshot."""
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=0))
    t.receive_tasks(snapshot(task(1), task(5, transient=True), forks=1))
    t.receive(Happening(Moment.EXEC, task(5, generation=1)), NOW)
    t.receive(Happening(Moment.DEATH, task(5, generation=1, dead=True)), NOW)
    t.receive_tasks(snapshot(task(1), forks=1))
    assert t.counts.missed == 0
    assert [e[:3] for e in drain(t)] == [("start", 1, "running"), ("start", 5, "exec"), ("end", 5, "exit")]


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


def test_a_counter_that_runs_backwards_is_no_loss():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=100))
    t.receive_tasks(snapshot(task(1), forks=3))
    assert t.counts.missed == 0


def test_the_parent_is_known_by_identity():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5, ppid=1)))
    t.next_event()
    child = t.next_event()
    assert isinstance(child, ProcessStart)
    assert child.process.parent == Identity(1, 1000)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (0, ExitStatus(code=0, signal=None, core=False)),
        (3 << 8, ExitStatus(code=3, signal=None, core=False)),
        (9, ExitStatus(code=None, signal=9, core=False)),
        (11 | 0x80, ExitStatus(code=None, signal=11, core=True)),
        (-1, ExitStatus(code=None, signal=127, core=True)),
    ],
)
def test_exit_status(raw, status):
    assert ExitStatus.from_kernel(raw) == status


def test_what_a_look_counted_as_missed_and_its_death_then_shows_is_not_missed():
    t = tracker()
    t.receive_tasks(snapshot())
    t.receive_tasks(snapshot(forks=2))  # two births were lost; one is reaped behind the fence of its death
    assert t.counts.missed == 2
    t.receive(Happening(Moment.DEATH, task(5, dead=True)), NOW)
    t.receive_tasks(snapshot(forks=2))
    assert (t.counts.missed, t.counts.late, t.counts.starts, t.counts.ends) == (1, 1, 1, 1)


def test_what_its_death_shows_before_any_look_counts_it_is_not_missed():
    t = tracker()
    t.receive_tasks(snapshot())
    t.receive(Happening(Moment.DEATH, task(5, dead=True)), NOW)
    t.receive_tasks(snapshot(forks=2))
    assert (t.counts.missed, t.counts.late) == (1, 1)


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


def test_repeating_any_moment_emits_nothing():
    """The rule that makes an extra look harmless, read off the table itself."""
    for (_state, moment), first in TRANSITIONS.items():
        again = TRANSITIONS.get((first.state, moment))
        if again is not None and moment is not Moment.EXEC:
            assert again.emits == (), (first, moment)


def test_the_diagram_shows_every_transition():
    assert diagram().count("-->") == len(TRANSITIONS) + 1
    assert all(state.value in diagram() for state in State)


# --- properties ---------------------------------------------------------------------------

_LIFE = st.sampled_from(["fork", "exec", "die", "reap"])


@st.composite
def histories(draw):
    """Steps that the kernel allows over a few pids, with identities that never repeat."""
    alive, dead, steps, clock = {}, {}, [], 0
    for kind in draw(st.lists(_LIFE, max_size=40)):
        clock += 1
        if kind == "fork":
            free = [pid for pid in range(2, 6) if pid not in alive and pid not in dead]
            if not free:
                continue
            pid = draw(st.sampled_from(free))
            alive[pid] = task(pid, start=clock)
            steps.append(("fork", alive[pid]))
        elif kind in ("exec", "die") and alive:
            pid = draw(st.sampled_from(sorted(alive)))
            if kind == "exec":
                old = alive[pid]
                alive[pid] = old._replace(generation=old.generation + 1, fresh=False, comm=b"c%d" % clock)
                steps.append(("exec", alive[pid]))
            else:
                dead[pid] = alive.pop(pid)._replace(dead=True, exit_code=clock << 8)
                steps.append(("die", dead[pid]))
        elif kind == "reap" and dead:
            steps.append(("reap", dead.pop(draw(st.sampled_from(sorted(dead))))))
    return steps


_MOMENTS = {"fork": Moment.FORK, "exec": Moment.EXEC, "die": Moment.DEATH, "reap": Moment.REAP}


def play(steps, looks_after=frozenset(), trapped=True):
    """Events of a history, from traps, with a look at the whole list after some of the steps."""
    t = tracker()
    t.receive_tasks(snapshot())
    listed = {}
    for index, (kind, subject) in enumerate(steps):
        if kind == "reap":
            listed.pop(subject.identity)
        else:
            listed[subject.identity] = subject
        if trapped and kind != "reap":
            t.receive(Happening(_MOMENTS[kind], subject), NOW)
        if index in looks_after:
            forks = sum(k == "fork" for k, _ in steps[: index + 1])
            t.receive_tasks(snapshot(*listed.values(), forks=forks))
    return t, drain(t)


@given(histories())
def test_traps_give_every_event_once_and_in_order(steps):
    t, events = play(steps)
    expected = []
    names = {}
    for kind, s in steps:
        pid = s.identity.pid
        if kind == "fork":
            names[pid] = s.comm.decode()
            expected.append(("start", pid, "fork", names[pid]))
        elif kind == "exec":
            expected += [
                ("end", pid, "exec"),
                ("exec", pid, names[pid], s.comm.decode()),
                ("start", pid, "exec", s.comm.decode()),
            ]
            names[pid] = s.comm.decode()
        elif kind == "die":
            expected.append(("end", pid, "exit"))
    assert events == expected
    assert (t.counts.unexpected, t.counts.late) == (0, 0)


@given(histories(), st.sets(st.integers(0, 40)))
def test_an_extra_look_after_any_trap_changes_nothing(steps, looks):
    assert play(steps, looks)[1] == play(steps)[1]


@given(histories(), st.sets(st.integers(0, 40)))
def test_looks_alone_balance_and_count_what_they_missed(steps, looks):
    t, events = play(steps, looks | {len(steps) - 1}, trapped=False)
    open_images = {}
    for event in events:
        if event[0] == "start":
            assert open_images.setdefault(event[1], event) is event, "a second start"
        elif event[0] == "end":
            assert open_images.pop(event[1], None) is not None, "an end without a start"
    assert {p.pid for p in t.live()} == set(open_images)
    forks = sum(kind == "fork" for kind, _ in steps)
    seen = sum(e[0] == "start" for e in events) - sum(e[0] == "exec" for e in events)
    corpses = t.counts.missed
    assert forks == seen + corpses


@given(histories(), st.integers(0, 40), st.integers(1, 5))
def test_a_look_before_the_traps_of_what_it_saw_changes_no_balance(steps, begin, length):
    """Behind a fence a vCPU runs on: a look may be ahead of traps, and the dead may be reaped."""
    t = tracker()
    t.receive_tasks(snapshot())
    listed, waiting = {}, []
    for index, (kind, s) in enumerate(steps):
        if kind == "reap":
            listed.pop(s.identity)
        else:
            while waiting and s.identity in (one.task.identity for one in waiting):
                t.receive(waiting.pop(0), NOW)
            listed[s.identity] = s
            waiting.append(Happening(_MOMENTS[kind], s))
        if index == begin + length:
            t.receive_tasks(snapshot(*listed.values(), forks=sum(k == "fork" for k, _ in steps[: index + 1])))
        if not begin <= index < begin + length:
            while waiting:
                t.receive(waiting.pop(0), NOW)
    for happening in waiting:
        t.receive(happening, NOW)
    alive = {identity for identity, s in listed.items() if not s.dead}
    assert {p.identity for p in t.live()} == alive
    events = drain(t)
    starts = [event[1] for event in events if event[0] == "start" and event[2] == "fork"]
    ends = [event[1] for event in events if event[0] == "end" and event[2] != "exec"]
    assert sorted(starts) == sorted(s.identity.pid for kind, s in steps if kind == "fork")
    assert sorted(ends) == sorted(s.identity.pid for kind, s in steps if kind == "die")


@settings(max_examples=1000)
@given(histories(), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_after_lost_traps_a_look_brings_the_tracker_back(steps, begin, length, reaped):
    """Lose a run of traps, snapshot, go on: the live processes are right from there on.

    ``reaped``: behind the fence of a death its process is reaped before the look that comes first.
    """
    t = tracker()
    t.receive_tasks(snapshot())
    listed = {}
    for index, (kind, s) in enumerate(steps):
        listed.pop(s.identity, None) if kind == "reap" else listed.__setitem__(s.identity, s)
        if index == begin + length:
            if kind == "die" and reaped:
                del listed[s.identity]
            t.receive_tasks(snapshot(*listed.values(), forks=sum(k == "fork" for k, _ in steps[: index + 1])))
        if not begin <= index < begin + length and kind != "reap":
            if kind == "fork":
                t.created(*s.identity)
            t.receive(Happening(_MOMENTS[kind], s), NOW)
    t.receive_tasks(snapshot(*listed.values(), forks=sum(k == "fork" for k, _ in steps)))
    alive = {identity for identity, s in listed.items() if not s.dead}
    assert {p.identity for p in t.live()} == alive
    starts, ends = t.counts.starts, t.counts.ends
    assert starts - ends == len(alive)
    assert t.counts.missed == sum(kind == "fork" for kind, _ in steps) - (starts - t.counts.execs)


def test_difference_reports_disappearances_before_what_took_the_pid():
    old = task(5, start=1)
    moments = list(difference({old.identity: old}, snapshot(task(5, start=2))))
    assert [m.moment for m in moments] == [Moment.REAP, Moment.FORK]


def test_what_only_a_torn_look_found_is_not_missed():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=1))
    t.receive_tasks(snapshot(task(1), task(2), forks=2, torn=True))
    t.receive_tasks(snapshot(task(1), forks=3))
    shown = [event for event in drain(t) if event[1] == 2]
    assert [event[0] for event in shown] == ["start", "end"]
    assert t.counts.missed == 1, "of two that were created one was shown"


def test_what_only_a_torn_look_found_inside_execve_is_missed():
    t = tracker()
    t.receive_tasks(snapshot(task(1), forks=1))
    t.receive_tasks(snapshot(task(1), task(2, transient=True), forks=2, torn=True))
    t.receive_tasks(snapshot(task(1), forks=2))
    assert [event for event in drain(t) if event[1] == 2] == []
    assert t.counts.missed == 1


def test_what_a_hostile_list_left_out_is_there_again():
    t = tracker()
    t.receive_tasks(snapshot(task(1), task(5)))
    t.receive_tasks(snapshot(task(1)))
    t.receive_tasks(snapshot(task(1), task(5)))
    assert [event[:2] for event in drain(t) if event[1] == 5] == [("start", 5), ("end", 5), ("start", 5)]
    assert {process.pid for process in t.live()} == {1, 5}
