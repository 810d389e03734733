"""Watchpoints on real guests: what they cost QEMU, and that `auto` takes them where there is no plugin."""

from __future__ import annotations

import re
import time

import pytest

from live.arch.x86_64 import X86_64
from live.core.events import Event, ProcessEnd, ProcessExec, ProcessStart, StartReason
from live.core.traps import Access, CodeHit, TrapRequest
from live.hypervisors.qemu.gdbstub.source import GdbSource
from live.watch.monitor import Monitor
from live.watch.session import Session
from live.watch.stepper import Stepper
from live.watch.watchers import Trapper
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest


def flushes(guest: Guest) -> int:
    """How often QEMU has thrown all of its translations away."""
    found = re.search(r"TB flush count\s+(\d+)", guest.hmp("info jit"))
    assert found
    return int(found[1])


@pytest.mark.parametrize("cpus", [1, 4])
def test_qemu_keeps_its_translations_while_processes_come_and_go(boot: Boot, cpus: int) -> None:
    guest = boot(cpus=cpus)
    with Session(str(guest.monitor)) as session:
        monitor = Monitor(session)
        assert (monitor.mode, monitor.choice.description[-11:]) == ("gdbstub", "watchpoints")
        assert monitor.choice.skipped[0].startswith("plugin: ")
        batches = monitor.batches(duration=20)
        next(batches)
        before = flushes(guest)
        jobs = [guest.start(["/programs/fork-exec", "20"]) for _ in range(cpus)]
        events = []
        while any(job.running for job in jobs):
            events += next(batches)
        after = flushes(guest)
        batches.close()
    # One more than processes: fork-exec itself.
    assert sum(isinstance(event, ProcessExec) for event in events) >= 20 * cpus
    assert sum(isinstance(event, ProcessEnd) for event in events) >= 40 * cpus
    assert (monitor.counts.missed, monitor.counts.unreadable) == (0, 0)
    # Each would have cost some 60 ms.
    assert after - before <= cpus
    assert guest.run(["true"]).status == 0


@pytest.mark.parametrize("kernel", ["5.10", "6.12", "7.2"])
def test_every_kernel_of_the_lab_can_be_watched_so(boot: Boot, kernel: str) -> None:
    with Session(str(boot(kernel=kernel).monitor)) as session:
        choice = session.choose("gdbstub")
        assert choice.source is not None
        with_words = session.request(choice.source)
        choice.source.close()
    assert choice.source.prefers is Access
    assert CodeHit in choice.source.supports
    assert len(with_words.accesses) == 3
    assert not with_words.code


def test_breakpoints_give_the_same_events(boot: Boot) -> None:
    """What is used under KVM, and where a kernel cannot be watched."""
    guest = boot(cpus=2)
    events: list[Event] = []
    with Session(str(guest.monitor)) as session:
        source = GdbSource(session.guest, X86_64, watch=False)
        stepper = Stepper(session.os)
        watcher = Trapper(session, stepper, source, session.request(source))
        steps = watcher.run(time.monotonic() + 30, events.append)
        next(steps)
        job = guest.start(["/programs/fork-exec", "3"])
        while job.running:
            next(steps)
        steps.close()
        source.close()
    kinds = [type(event) for event in events]
    forks = [one for one in events if isinstance(one, ProcessStart) and one.reason is StartReason.FORK]
    assert (len(forks), kinds.count(ProcessExec)) == (4, 4)
    ended = [one for one in events if isinstance(one, ProcessEnd) and one.status is not None]
    assert [one.status.code for one in ended if one.status] == [0] * 4
    assert {one.occasion.trigger for one in forks} == {"wake_up_new_task"}
    assert stepper.counts.missed == 0


@pytest.mark.parametrize("qemu", ["10", "7.2"])
@pytest.mark.parametrize("stands", ["paused", "debug"])
@pytest.mark.parametrize("watch", [False, True])
def test_a_guest_that_stands_again_before_it_is_ours_is_no_stub_that_hangs(
    boot: Boot, monkeypatch: pytest.MonkeyPatch, qemu: str, stands: str, watch: bool
) -> None:
    """After a pause by somebody else we interrupt the guest, which QEMU ignores if it stands by then: paused
    once more, or at a trap, of which nobody was told.
    """
    guest = boot(qemu=qemu)
    with Session(str(guest.monitor)) as session:
        source = GdbSource(session.guest, X86_64, watch=watch)
        source.arm(session.request(source))
        ask, jobs = session.guest.status, []

        def status() -> str:
            found = ask()
            if found == "running" and not jobs:
                if stands == "paused":
                    guest.stop()
                jobs.append(guest.start(["true"]))
                until = time.monotonic() + 30
                while ask() != stands:
                    assert time.monotonic() < until
            return found

        monkeypatch.setattr(session.guest, "status", status)
        guest.stop()
        assert source.wait(0.3) is None
        guest.cont()
        traps = 0
        if stands == "paused":
            assert source.wait(0.5) is None
            assert ask() == "paused"
            guest.cont()
        while not jobs or jobs[0].running:
            if trap := source.wait(0.1):
                traps += 1
                source.resume(trap)
        # A fork, an exec, an end; a fork is trapped once more, where it returns to.
        assert traps >= 3
        source.close()
    assert guest.run(["true"]).status == 0
    assert guest.qmp("query-status")["status"] == "running"


@pytest.mark.parametrize("qemu", ["10", "7.2"])
@pytest.mark.parametrize("found", ["as we wait", "as we arm", "as we leave"])
@pytest.mark.parametrize("watch", [False, True])
def test_a_guest_that_somebody_else_has_paused_stays_paused_when_we_leave(
    boot: Boot, qemu: str, found: str, watch: bool
) -> None:
    """It is theirs to end; and then nothing of ours is left."""
    guest = boot(qemu=qemu)
    with Session(str(guest.monitor)) as session:
        source = GdbSource(session.guest, X86_64, watch=watch)
        request = session.request(source)
        source.arm(request)
        guest.stop()
        if found == "as we wait":
            assert source.wait(0.3) is None
        if found != "as we leave":
            source.arm(TrapRequest())
            assert guest.qmp("query-status")["status"] == "paused"
            source.arm(request)
            assert guest.qmp("query-status")["status"] == "paused"
        source.close()
        assert guest.qmp("query-status")["status"] == "paused"
    guest.cont()
    assert guest.run(["/programs/fork-exec", "3"]).status == 0
    assert guest.qmp("query-status")["status"] == "running"
    with Session(str(guest.monitor)) as session:
        source = GdbSource(session.guest, X86_64, watch=watch)
        source.arm(session.request(source))
        job = guest.start(["true"])
        traps = 0
        while job.running:
            if trap := source.wait(0.1):
                traps += 1
                source.resume(trap)
        assert traps >= 3
        source.close()
    assert guest.qmp("query-status")["status"] == "running"
