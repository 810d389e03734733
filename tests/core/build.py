"""Short ways to make tasks, snapshots and a tracker over them."""

from dataclasses import replace

from live.core.events import Identity, Occasion, Process, ProcessEnd, ProcessExec
from live.core.snapshot import Counters, Snapshot, Task
from live.core.tracker import Tracker


def task(pid, *, start=None, ppid=1, comm=b"sh", generation=0, **changes):
    values = dict(
        identity=Identity(pid, pid * 1000 if start is None else start),
        address=0xFFFF888000000000 + pid * 0x4000,
        ppid=ppid,
        parent=0xFFFF888000000000 + ppid * 0x4000,
        comm=comm,
        flags=0,
        generation=generation,
        mm=0xFFFF888001000000 + pid * 0x1000,
        asid=pid << 13,
        uid=0,
        threads=1,
        exit_state=0,
        exit_code=0,
        kernel=False,
        fresh=generation == 0,
        dead=False,
        transient=False,
    )
    return Task(**{**values, **changes})


def snapshot(*tasks, forks=0, threads=None, torn=False, time_ns=0, tids=None, trigger="timer"):
    return Snapshot(
        time_ns=time_ns,
        trigger=trigger,
        counters=Counters(forks, len(tasks) if threads is None else threads, 0),
        tasks=tasks,
        tids=frozenset(tuple(t.identity) for t in tasks) if tids is None else frozenset(tids),
        torn=torn,
    )


def describe(t, *, standing=False):
    return Process(
        identity=t.identity,
        generation=t.generation,
        pid=t.identity.pid,
        ppid=t.ppid,
        comm=t.comm.decode(),
        kernel=t.kernel,
        task=t.address,
        asid=t.asid or None,
    )


def tracker(revisit=lambda _: None):
    return Tracker(describe, revisit)


NOW = Occasion(time_ns=0, trigger="test")


def short(event):
    """An event in short: (start, pid, reason, comm), (exec, pid, old, new), (end, pid, reason)."""
    if isinstance(event, ProcessExec):
        return "exec", event.new.pid, event.old.comm, event.new.comm
    if isinstance(event, ProcessEnd):
        return "end", event.process.pid, event.reason.value
    return "start", event.process.pid, event.reason.value, event.process.comm


def replace_time(occasion, time_ns):
    return replace(occasion, time_ns=time_ns)


def drain(tracker):
    """All queued events in short."""
    return [short(event) for event in iter(tracker.next_event, None)]
