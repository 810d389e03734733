"""The trap plugin in QEMU before it is read, and in odd QEMUs: it costs nothing, and spoils no guest."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from live.core.errors import TargetError
from live.core.events import ProcessExec
from live.core.memory import GuestPhysical
from live.core.traps import TrapRequest
from live.hypervisors.qemu import attach
from live.hypervisors.qemu.gdbstub.client import GdbClient
from live.hypervisors.qemu.plugin import build
from live.hypervisors.qemu.plugin.source import PluginSource
from live.hypervisors.qemu.tb_invalidation import remake
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
        for _ in range(2):
            with Session(str(guest.monitor)) as session:
                assert execs(guest, session) == 20
        kept, before = expansion(guest), flushes(guest)
        with Session(str(guest.monitor)) as session:
            # Instructions may be anywhere, so all code is made anew.
            assert calls(guest, session, TrapRequest(syscalls=frozenset({EXECVE}))) == 21
            assert execs(guest, session) == 20
        guest.run(["fork-exec", "200"])
        anew, after = expansion(guest), flushes(guest)
    assert abs(loaded / without - 1) < 0.01
    assert kept - loaded < 0.3 * (anew - loaded)
    assert (before, after) == (0, 1)


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
        assert flushes(guest) == 0


def test_memory_stays_as_it_is_and_what_is_no_ram_is_not_written(boot: Boot) -> None:
    guest = boot()
    with attach(str(guest.monitor)) as attached:
        text = next(gpa for gpa in range(0x100000, 1 << 27, 4096) if any(attached.memory.read(gpa, 4096)))
        before = attached.memory.read(text, 4096)
        assert remake(attached, set(map(GuestPhysical, range(text, text + 4096, 97))))
        assert attached.memory.read(text, 4096) == before
        assert not remake(attached, {GuestPhysical(text), GuestPhysical(0xFEC00000)})
        assert attached.status() == "running"
    assert "\ngdb: " not in guest.hmp("info chardev")


def test_where_a_debugger_has_the_gdb_stub_all_code_is_made_anew(boot: Boot, tmp_path: Path) -> None:
    guest = boot(plugins=(sockets.plugin("debugged"),))
    guest.hmp(f"gdbserver unix:{tmp_path / 'gdb'},server=on,wait=off")
    debugger = GdbClient(str(tmp_path / "gdb"))
    debugger.resume()
    with Session(str(guest.monitor)) as session:
        assert execs(guest, session) == 20
    debugger.detach()
    guest.hmp("gdbserver none")
    assert flushes(guest) == 1


def test_a_reader_that_goes_before_code_is_made_anew(boot: Boot) -> None:
    guest = boot(plugins=(sockets.plugin("gone"),))

    def interrupted(_: object) -> bool:
        raise KeyboardInterrupt

    with Session(str(guest.monitor)) as session:
        path = session.guest.info.plugin_socket
        assert path is not None
        source = PluginSource(path, session.guest.memory, remake=interrupted)
        with pytest.raises(KeyboardInterrupt):
            source.arm(session.request(source))
        source.close()
        assert execs(guest, session) == 20
    assert flushes(guest) == 1


def test_arming_takes_the_gdb_stub_for_a_moment_and_leaves_the_guest_as_it_was(boot: Boot) -> None:
    guest = boot(plugins=(sockets.plugin("moment"),))
    with Session(str(guest.monitor)) as session:
        source = session.choose("plugin").source
        assert source is not None
        guest.stop()
        source.arm(session.request(source))
        assert guest.hmp("info status").strip() == "VM status: paused"
        assert "\ngdb: " not in guest.hmp("info chardev")
        guest.cont()
        source.close()
        assert execs(guest, session) == 20
    assert flushes(guest) == 0


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


def test_a_qemu_without_memory_for_it_is_no_qemu_that_traps(tmp_path: Path) -> None:
    """Code addresses are put into a list, and what is not in it is trapped nowhere."""
    here, poor, plugin = Path(build.__file__).parent, tmp_path / "poor.c", tmp_path / f"{build.NAME}-poor.so"
    poor.write_text("#include <stddef.h>\nvoid *poor(size_t size) { (void)size; return NULL; }\n")
    compiler = build.compiler()
    assert compiler is not None
    sources = [poor, *(here / name for name in build.SOURCES)]
    subprocess.run([compiler, *build.FLAGS, "-Dmalloc=poor", *sources, "-o", plugin], check=True)
    socket = tmp_path / "trap.sock"
    with Guest(GuestSpec(plugins=(build.argument(socket, plugin),))) as guest:
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
