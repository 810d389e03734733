"""The trap plugin in QEMU before it is read, and in odd QEMUs: it costs nothing, and spoils no guest."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path
from typing import NoReturn

import pytest

from live.core.errors import TargetError
from live.core.events import ProcessExec
from live.core.traps import TrapRequest
from live.hypervisors.qemu.plugin import build
from live.hypervisors.qemu.plugin.source import PluginSource
from live.watch.monitor import Monitor
from live.watch.session import Session
from tests.accuracy.run import trappable
from tests.guest import GuestError, GuestSpec
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.hypervisors import sockets
from tests.hypervisors.test_watched import flushes

pytestmark = pytest.mark.guest
EXECVE = 59


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


def calls(guest: Guest, session: Session, request: TrapRequest) -> int:
    """How many traps there are of ``fork-exec 20``."""
    source = session.choose("plugin").source
    assert source is not None
    source.arm(request)
    job, traps = guest.start(["fork-exec", "20"]), 0
    while (trap := source.wait(0.2)) is not None or job.running:
        if trap is not None:
            traps += 1
            source.resume(trap)
    source.close()
    return traps


def test_qemu_is_not_told_to_serve_plugins_before_somebody_reads() -> None:
    with Guest(GuestSpec()) as guest:
        guest.run(["fork-exec", "200"])
        without = expansion(guest)
    with trappable(GuestSpec()) as guest:
        guest.run(["fork-exec", "200"])
        loaded = expansion(guest)
        before = flushes(guest)
        for _ in range(2):
            with Session(str(guest.monitor)) as session:
                assert execs(guest, session) == 20
        read = flushes(guest)
        with Session(str(guest.monitor)) as session:
            # Code that says which system call it makes has to be made anew for one that was never listed.
            assert calls(guest, session, TrapRequest(syscalls=frozenset({EXECVE}))) == 21
            assert execs(guest, session) == 20
        guest.run(["fork-exec", "200"])
        anew, after = expansion(guest), flushes(guest)
    assert abs(loaded / without - 1) < 0.01 < anew / without - 1
    assert (before, read, after) == (0, 1, 2)


def test_no_trap_is_missed_in_code_from_before(boot: Boot) -> None:
    """A vCPU that has run the functions that are trapped, of every process that forks, execs and exits."""
    for cpus in (1, 4):
        guest = boot(cpus=cpus, plugins=(sockets.plugin(f"before-{cpus}"),))
        jobs = [guest.start(["fork-exec", "2000"]) for _ in range(cpus)]
        time.sleep(1)
        with Session(str(guest.monitor)) as session:
            monitor = Monitor(session, mode="plugin")
            batches = monitor.batches(duration=60)
            next(batches)
            assert any(job.running for job in jobs)
            for _ in batches:
                if not any(job.running for job in jobs):
                    break
            batches.close()
        # A proof compares with the kernel's own counters.
        assert monitor.counts.missed == monitor.counts.unexpected == 0
        assert monitor.counts.execs > 100
        assert flushes(guest) == 1


def test_a_debugger_at_the_gdb_stub_is_not_in_the_way(boot: Boot, tmp_path: Path) -> None:
    guest = boot(plugins=(sockets.plugin("debugged"),))
    guest.hmp(f"gdbserver unix:{tmp_path / 'gdb'},server=on,wait=off")
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(str(tmp_path / "gdb"))
        debugger.sendall(b"+$c#63")
        with Session(str(guest.monitor)) as session:
            assert execs(guest, session) == 20
    guest.hmp("gdbserver none")


def test_a_reader_that_goes_before_code_is_made_anew(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = boot(plugins=(sockets.plugin("gone"),))

    def interrupted(_source: PluginSource, _flush: int, _deadline: float, *, traps: bool) -> NoReturn:
        raise KeyboardInterrupt

    with Session(str(guest.monitor)) as session:
        source = session.choose("plugin").source
        assert source is not None
        with monkeypatch.context() as patched:
            patched.setattr(PluginSource, "_await_flush", interrupted)
            with pytest.raises(KeyboardInterrupt):
                source.arm(session.request(source))
        source.close()
        assert execs(guest, session) == 20
    assert flushes(guest) == 1


def test_nothing_is_trapped_before_all_code_is(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that a trap holds would keep others in code from before, in which nothing is trapped."""
    guest, seen = boot(plugins=(sockets.plugin("first"),)), []

    def meanwhile(source: PluginSource, _flush: int, _deadline: float, *, traps: bool) -> None:
        guest.run(["fork-exec", "20"])
        seen.append((traps, source.wait(0), flushes(guest)))

    with Session(str(guest.monitor)) as session:
        source = session.choose("plugin").source
        assert source is not None
        with monkeypatch.context() as patched:
            patched.setattr(PluginSource, "_await_flush", meanwhile)
            source.arm(session.request(source))
        assert seen == [(False, None, 1)]
        source.close()
        assert execs(guest, session) == 20


def test_a_paused_guest_can_be_armed_and_stays_paused(boot: Boot) -> None:
    guest = boot(plugins=(sockets.plugin("paused"),))
    with Session(str(guest.monitor)) as session:
        source = session.choose("plugin").source
        assert source is not None
        guest.stop()
        source.arm(session.request(source))
        assert guest.hmp("info status").strip() == "VM status: paused"
        guest.cont()
        source.close()
        assert execs(guest, session) == 20
    assert flushes(guest) == 1


@pytest.mark.parametrize("cpus", [1, 2])
def test_vcpus_that_never_sleep_and_run_nothing_new_are_trapped_all_the_same(cpus: int) -> None:
    with trappable(GuestSpec(cpus=cpus)) as guest:
        for _ in range(cpus):
            guest.start(["sh", "-c", "while :; do :; done"])
        time.sleep(4)  # by then QEMU has translated what they run
        with Session(str(guest.monitor)) as session:
            begin = time.monotonic()
            assert execs(guest, session) == 20
            assert "running" in guest.hmp("info status")
    assert time.monotonic() - begin < 20


def test_a_qemu_without_memory_for_it_is_no_qemu_that_traps(tmp_path: Path) -> None:
    """Code addresses are put into a list, and what is not in it is trapped nowhere."""
    here, poor, plugin = Path(build.__file__).parent, tmp_path / "poor.c", tmp_path / f"{build.NAME}-poor.so"
    poor.write_text("#include <stddef.h>\nvoid *poor(size_t size) { (void)size; return NULL; }\n")
    compiler = build.compiler()
    assert compiler is not None
    sources = [poor, *(here / name for name in build.SOURCES)]
    subprocess.run([compiler, *build.FLAGS, "-Dmalloc=poor", *sources, "-o", plugin], check=True)
    with Guest(GuestSpec(plugins=(build.argument(tmp_path / "trap.sock", plugin),))) as guest:
        for _ in range(2):
            with Session(str(guest.monitor)) as session:
                monitor = Monitor(session, mode="plugin")
                with pytest.raises(TargetError, match="no memory for what is to be trapped"):
                    next(monitor.batches(duration=30))
        assert guest.run(["fork-exec", "20"]).code == 0
        with Session(str(guest.monitor)) as session:
            # Instructions need no list.
            assert calls(guest, session, TrapRequest(syscalls=frozenset({EXECVE}))) == 21


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
