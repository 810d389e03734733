"""The trap plugin in QEMU before it is read, and in odd QEMUs: it costs nothing, and spoils no guest."""

from __future__ import annotations

import re
import time

import pytest

from live.core.events import ProcessExec
from live.monitor import Monitor
from live.session import Session
from tests.accuracy.run import trappable
from tests.adapters.test_watched import flushes
from tests.guest import GuestError, GuestSpec
from tests.guest.guest import Guest

pytestmark = pytest.mark.guest


def expansion(guest: Guest) -> float:
    """Bytes of host code for each byte of guest code, of what QEMU has translated."""
    found = re.search(r"expansion ratio: ([\d.]+)", guest.hmp("info jit"))
    assert found
    return float(found[1])


def execs(guest: Guest, session: Session) -> int:
    """How many execs are seen of 20."""
    monitor = Monitor(session, mode="plugin")
    batches = monitor.batches(duration=30)
    next(batches)
    job, seen = guest.start(["fork-exec", "20"]), 0
    for batch in batches:
        seen += sum(isinstance(event, ProcessExec) and event.new.comm == "true" for event in batch)
        if seen >= 20 and not job.running:
            break
    batches.close()
    assert monitor.counts.missed == 0
    return seen


def test_qemu_is_not_told_to_serve_plugins_before_somebody_reads() -> None:
    with Guest(GuestSpec()) as guest:
        guest.run(["fork-exec", "200"])
        without = expansion(guest)
    with trappable(GuestSpec()) as guest:
        guest.run(["fork-exec", "200"])
        loaded, before = expansion(guest), flushes(guest)
        for _ in range(2):
            with Session(str(guest.monitor)) as session:
                assert execs(guest, session) == 20
        guest.run(["fork-exec", "200"])
        read, after = expansion(guest), flushes(guest)
    assert abs(loaded / without - 1) < 0.01 < read / loaded - 1
    assert (before, after) == (0, 1)


@pytest.mark.parametrize("cpus", [1, 2])
def test_vcpus_that_never_sleep_and_run_nothing_new_are_trapped_all_the_same(cpus: int) -> None:
    with trappable(GuestSpec(cpus=cpus)) as guest:
        for _ in range(cpus):
            guest.start(["sh", "-c", "while :; do :; done"])
        time.sleep(4)  # by then QEMU has translated what they run
        with Session(str(guest.monitor)) as session:
            begin = time.monotonic()
            assert execs(guest, session) == 20
            assert session.guest.status() == "running"
    assert time.monotonic() - begin < 20


def test_all_vcpus_in_one_thread() -> None:
    """QEMU reports no wake-ups then, and spoils the code of all vCPUs but the first (seen in 10.0)."""
    with trappable(GuestSpec(accel="tcg,thread=single")) as guest:
        time.sleep(1)
        with Session(str(guest.monitor)) as session:
            assert execs(guest, session) == 20
    for more in ({"accel": "tcg,thread=single"}, {"extra": ("-icount", "shift=auto")}):
        spec = GuestSpec(cpus=2, **more)
        with pytest.raises(GuestError, match="spoil a guest with more than one vCPU"), trappable(spec):
            pass
