"""Start events come before the first system call of the new image, or of the new process.

With callbacks the vCPU stands meanwhile; without, the guest runs on behind a fence (`TrapRequest.fences`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from live.core.events import ProcessStart
from live.linux.machines import MACHINES
from live.watch.monitor import Monitor
from live.watch.session import Session
from live.watch.stepper import Stepper
from tests.accuracy.run import trappable
from tests.guest import GuestSpec
from tests.guest.truth import TruthExec, TruthFork, TruthOther

pytestmark = pytest.mark.guest
HOLD_S = 0.2
_EXECVE = "59"
PROGRAMS = ("fork-exec", "true")


def test_the_guest_stands_before_the_first_system_call():
    held = []
    with trappable(GuestSpec()) as guest, Session(str(guest.monitor)) as session:
        monitor = Monitor(session, mode="plugin")

        @monitor.on_process_start
        def started(process):
            if process.comm not in PROGRAMS or not looking.is_set():
                return
            # Memory as it is now, the event not believed.
            now = session.os.processes.describe(session.os.kernel.read_task(process.task))
            before = session.os.kernel.counters()
            time.sleep(HOLD_S)
            assert session.os.kernel.counters() == before, "the only vCPU is held"
            held.append((process.pid, now.comm, now.args, now.exe))

        looking, ready = threading.Event(), threading.Event()

        def watch():
            for batch in monitor.batches(duration=60):
                if batch:
                    ready.set()
                if done.is_set():
                    return

        done = threading.Event()
        thread = threading.Thread(target=watch)
        thread.start()
        ready.wait(30)
        with guest.truth(events=["raw_syscalls/sys_enter"]) as recorder:
            looking.set()
            job = guest.start(["fork-exec", "3"])
            job.wait()
            looking.clear()
        done.set()
        thread.join()
    program, *children = [process.tgid for process in recorder.truth.below(job.pid)]
    forked, executed = (
        ("fork-exec", ("fork-exec", "3"), "/programs/fork-exec"),
        ("true", ("true",), "/programs/true"),
    )
    assert held[0] == (program, *forked)
    assert held[1:] == [(pid, *what) for pid in children for what in (forked, executed)]
    for pid in children:
        check(recorder.truth.events, program, pid)


def check(events, parent, child):
    """The guest's own tracer: what the parent and the child did around the two moments."""
    created = next(at for at, e in enumerate(events) if isinstance(e, TruthFork) and e.pid == child)
    execs = next(at for at, e in enumerate(events) if isinstance(e, TruthExec) and e.tgid == child)
    calls = [(at, e) for at, e in enumerate(events) if isinstance(e, TruthOther)]
    # fork: from the parent's call to the moment of creation it was held; the child had done nothing.
    asked = [e for at, e in calls if at < created and e.by == parent][-1]
    assert events[created].ts - asked.ts > HOLD_S * 1e9
    of_child = [(at, e) for at, e in calls if e.by == child]
    assert min(at for at, _ in of_child) > created
    # exec: execve is its last call before, the next one is the new image's first; in between it was held.
    before = [e for at, e in of_child if at < execs][-1]
    after = next(e for at, e in of_child if at > execs)
    assert before.text.split()[1] == _EXECVE
    assert after.text.split()[1] != _EXECVE
    assert after.ts - before.ts > HOLD_S * 1e9


def number(call):
    """Of a system call, by its text: ``NR 61 (...)``."""
    return int(call.text.split()[1])


def test_behind_a_fence_the_guest_makes_no_system_call_but_to_wait_for_a_child():
    seen = []
    with trappable(GuestSpec()) as guest, Session(str(guest.monitor)) as session:
        stepper = Stepper(session.os)
        source = session.choose("plugin").source
        looking, done = threading.Event(), threading.Event()

        def describe(task):
            return session.os.processes.describe(session.os.kernel.read_task(task))

        def watch():
            while not done.is_set():
                trap = source.wait(0.05)
                if trap is None:
                    continue
                for event in stepper.trap(trap, 0, 0):
                    if not isinstance(event, ProcessStart) or event.process.comm not in PROGRAMS:
                        continue
                    if looking.is_set():
                        first = describe(event.process.task)
                        time.sleep(HOLD_S)  # the guest goes as far as it can
                        assert describe(event.process.task) == first
                        seen.append((event.process.pid, event.process.args))
                source.resume(trap)

        source.arm(replace(session.request(source), fences=session.os.points().fences))
        stepper.snapshot(0, "attach")
        thread = threading.Thread(target=watch)
        thread.start()
        with guest.truth(events=["raw_syscalls/sys_enter"]) as recorder:
            looking.set()
            job = guest.start(["parent-first", "fork-exec", "3"])
            job.wait()
            looking.clear()
        done.set()
        thread.join()
        timeouts = source.counters.hold_timeouts
        source.close()
    assert timeouts == 0
    program, *children = [process.tgid for process in recorder.truth.below(job.pid)]
    forked, executed = ("fork-exec", "3"), ("true",)
    assert seen[0] == (program, forked)
    assert seen[1:] == [(pid, args) for pid in children for args in (forked, executed)]
    events = recorder.truth.events
    for pid in children:
        created = next(at for at, e in enumerate(events) if isinstance(e, TruthFork) and e.pid == pid)
        execs = next(at for at, e in enumerate(events) if isinstance(e, TruthExec) and e.tgid == pid)
        # Of anybody in the guest, not only of the two.
        since_fork, since_exec = (
            [(number(e), e.ts - events[at].ts) for e in events[at:] if isinstance(e, TruthOther)]
            for at in (created, execs)
        )
        assert since_exec[0][1] > HOLD_S * 0.9e9
        assert next(ns for call, ns in since_fork if call not in MACHINES["x86_64"].waits) > HOLD_S * 0.9e9
        # The parent, which goes on first, is in its wait4 while the start of its child is read.
        assert since_fork[0][0] in MACHINES["x86_64"].waits
        assert since_fork[0][1] < HOLD_S * 0.9e9
