"""Watchpoints on real guests: what they cost QEMU, and that `auto` takes them where there is no plugin."""

from __future__ import annotations

import re

import pytest

from live.core.events import ProcessEnd, ProcessExec
from live.core.traps import Access, CodeHit
from live.monitor import Monitor
from live.session import Session
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
