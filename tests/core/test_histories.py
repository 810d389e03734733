"""Properties of the tracker, over histories that the kernel allows."""

from hypothesis import given, settings
from hypothesis import strategies as st

from live.core.snapshot import Happening, Moment
from tests.core.build import NOW, drain, snapshot, task, tracker

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


def play(steps, snapshots_after=frozenset(), trapped=True):
    """Events of a history, from traps, with a snapshot of the whole list after some of the steps."""
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
        if index in snapshots_after:
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
def test_an_extra_snapshot_after_any_trap_changes_nothing(steps, snapshots):
    assert play(steps, snapshots)[1] == play(steps)[1]


@given(histories(), st.sets(st.integers(0, 40)))
def test_snapshots_alone_balance_and_count_what_they_missed(steps, snapshots):
    t, events = play(steps, snapshots | {len(steps) - 1}, trapped=False)
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
def test_a_snapshot_before_the_traps_of_what_it_saw_changes_no_balance(steps, begin, length):
    """Behind a fence a vCPU runs on: a snapshot may be ahead of traps, and the dead may be reaped."""
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
def test_after_lost_traps_a_snapshot_brings_the_tracker_back(steps, begin, length, reaped):
    """Lose a run of traps, snapshot, go on: the live processes are right from there on.

    ``reaped``: behind the fence of a death its process is reaped before the snapshot that comes first.
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
