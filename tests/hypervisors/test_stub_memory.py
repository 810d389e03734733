"""Guest memory through the gdb stub, where the operating system lets us use nothing but the monitor."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.core.errors import MemoryFault, NotPermitted, TargetError
from live.hypervisors.qemu import guest
from live.hypervisors.qemu.guest import attach
from live.hypervisors.qemu.memory.stub import StubMemory
from live.recording.opening import open_recording
from live.watch.session import Session
from tests.guest.channel import Job
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.test_tasks import ours, rows, settled
from tests.watch import Watch, environment, pse

REFUSED = "The memory of QEMU may not be read."
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # The interpreter and this checkout may lie where root alone may go; QEMU's memory is not opened by that.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may not read QEMU's memory."""

    def refuse(*_: object, **__: object) -> None:
        raise NotPermitted(REFUSED)

    monkeypatch.setattr(guest, "open_memory", refuse)
    monkeypatch.setattr(guest.by_process, "attach", refuse)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can reach and nobody has to own."""
    with tempfile.TemporaryDirectory(prefix="pse-test-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


def running(guest: Guest) -> bool:
    return bool(guest.qmp("query-status")["running"])


def lasting(guest: Guest, code: int) -> Job:
    """A process that ends with this code when it is told to (SIGTERM).

    A look takes a while: what it must not miss has to be there until it has been shown.
    """
    job = guest.start(["sh", "-c", f"trap 'exit {code}' TERM; echo ready; sleep 600; :"])
    deadline = time.monotonic() + 60
    while "ready" not in job.output:
        assert job.status is None, job.output
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def leftovers(guest: Guest) -> list[str]:
    return [line for line in guest.hmp("info chardev").splitlines() if line.startswith("gdb:")]


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("qemu", ["10", "7.2"])
def test_task_list_and_bytes_are_the_guests(boot: Boot, qemu: str) -> None:
    lab = boot(qemu=qemu)
    with Session(str(lab.monitor)) as session:
        memory = session.guest.memory
        assert isinstance(memory, StubMemory)
        assert memory.description.startswith("read through QEMU's gdb stub (the memory of process ")
        seen, listed = settled(lab, lambda: ours(session))
        assert seen == rows(listed)
        with pytest.raises(TargetError, match=r"^guest memory is read through the gdb stub"):
            session.choose("plugin")
        choice = session.choose("auto")
        assert (choice.mode, choice.source) == ("poll", None)
        assert choice.skipped[0].startswith("plugin, gdbstub: guest memory is read through the gdb stub")
        for _ in range(3):
            before = memory.stops
            session.os.kernel.snapshot(0, "")
        assert memory.stops - before <= 4, "what was read last time is read at once"
        assert running(lab)
    assert leftovers(lab) == []
    assert running(lab)


def test_bytes_are_those_of_the_mapped_reader(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a paused guest, every byte; it stays paused."""
    lab = boot(fresh=True, memory=256)
    lab.stop()
    with attach(str(lab.pid)) as attached:
        flat = attached.memory.flat
        assert flat is not None
        segments = attached.memory.segments
        copy = {one: bytes(flat[one.start : one.end]) for one in segments}
    monkeypatch.setattr(guest, "open_memory", lambda *_, **__: (_ for _ in ()).throw(NotPermitted(REFUSED)))
    with attach(str(lab.pid)) as attached:
        memory = attached.memory
        assert isinstance(memory, StubMemory)
        assert memory.segments == segments
        for one, data in copy.items():
            assert memory.read(one.start, one.length) == data
            for at, length in ((0, 8), (2047, 2), (4095, 4098), (one.length - 3, 3), (1 << 16, 1 << 16)):
                assert memory.read(one.start + at, length) == data[at : at + length]
        last = segments[-1].end
        for gpa, length, first_bad in ((last, 1, last), (last - 2, 4, last), (1 << 40, 8, 1 << 40)):
            with pytest.raises(MemoryFault) as caught:
                memory.read(gpa, length)
            assert caught.value.address == first_bad
        assert memory.read(0, 0) == b""
        assert (memory.stops, memory.rest()) == (0, 0.0), "it stood already"
        assert not running(lab)
    assert not running(lab)
    lab.cont()
    assert lab.run(["true"]).status == 0


@pytest.mark.usefixtures("refused")
def test_what_was_read_is_kept_until_a_refresh(boot: Boot) -> None:
    lab = boot()
    with Session(str(lab.monitor)) as session:
        kernel, memory = session.os.kernel, session.guest.memory
        assert isinstance(memory, StubMemory)
        memory.refresh()
        before, stops = kernel.counters(), memory.stops
        lab.run(["true"])
        assert (kernel.counters(), memory.stops) == (before, stops)
        memory.refresh()
        assert kernel.counters().forks > before.forks
        memory.refresh()
        stops = memory.stops
        kernel.counters()
        assert memory.stops == stops + 1, "what follows a miss comes with it"
        assert memory.rest() > 0


@pytest.mark.usefixtures("refused")
def test_a_stub_that_is_in_use_is_left_alone(boot: Boot) -> None:
    lab = boot()
    with attach(str(lab.monitor)), pytest.raises(TargetError, match="does not answer: another program uses"):
        attach(str(lab.monitor))
    address = tempfile.mkdtemp() + "/gdb"
    lab.hmp(f"gdbserver unix:{address},server=on,wait=off")
    try:
        with Session(str(lab.monitor)) as session:  # an idle one is used, and stays
            assert session.os.kernel.counters().forks > 0
        assert "disconnected" in leftovers(lab)[0]
        with socket.socket(socket.AF_UNIX) as debugger:
            debugger.connect(address)
            time.sleep(0.2)
            with pytest.raises(NotPermitted, match=r"Nor can it be had through the gdb stub: .* is in use"):
                attach(str(lab.monitor))
            assert not running(lab), "it stands as the debugger left it"
    finally:
        lab.hmp("gdbserver none")
        lab.cont()


@pytest.mark.parametrize("protocol", ["qmp", "hmp"])
def test_an_unprivileged_user_sees_the_same(boot: Boot, public: Path, protocol: str) -> None:
    """RAM is private, QEMU is root's, and all that we have is its monitor: ps and watch work end to end."""
    path = public / "monitor"
    option = "-qmp" if protocol == "qmp" else "-monitor"
    lab = boot(fresh=True, ram="private", extra=(option, f"unix:{path},server=on,wait=off"))
    path.chmod(0o777)
    env = {
        **environment(),
        "HOME": str(public),
        "PSE_SYMBOLS": str(public / "symbols"),
        "TMPDIR": str(public),
    }
    command = (*NOBODY, sys.executable, "-m", "live.cli.main")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=120, check=False, env=env, cwd="/"
        )

    shown = run("ps", str(path), "--json")
    assert shown.returncode == 0, shown.stderr
    seen = {(d["process"]["pid"], d["process"]["name"]) for d in map(json.loads, shown.stdout.splitlines())}
    listed = {(entry.pid, entry.comm) for entry in lab.proc_list()}
    assert {one for one in listed if one[1] in ("init", "kthreadd", "agent")} <= seen
    assert len(seen ^ listed) <= 4, seen ^ listed  # kernel workers come and go
    assert running(lab)
    with Watch(str(path), "--mode", "poll", prefix=NOBODY, env=env, cwd="/") as watch:
        job = lasting(lab, 3)
        watch.shown(job.wait_pid(), "start")
        job.kill(signal.SIGTERM)
        end = watch.shown(job.wait_pid(), "end")
        job.wait(60, check=False)
    assert watch.status == 0, watch.errors
    assert "memory read through QEMU's gdb stub (the memory of process" in watch.errors
    assert end["process"].get("exit_code") == 3
    assert running(lab)
    assert leftovers(lab) == []
    assert {one.name for one in public.iterdir()} <= {"monitor", "symbols", ".cache"}, "nothing is left"


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_hanging_in_a_stop(boot: Boot, how: signal.Signals) -> None:
    lab = boot()
    script = (
        "import sys; from live.hypervisors.qemu import guest\n"
        "from live.hypervisors.qemu.guest import attach\n"
        "from live.core.errors import NotPermitted\n"
        "def refuse(*_, **__): raise NotPermitted('no.')\n"
        "guest.open_memory = refuse\n"
        "memory = attach(sys.argv[1]).memory\n"
        "print('attached', flush=True)\n"
        "while True: memory.refresh(); memory.read(0x1000000, 65536)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lab.monitor)], stdout=subprocess.PIPE, env=environment(), text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "attached\n"
        for _ in range(200):
            os.kill(reader.pid, signal.SIGSTOP)
            if not running(lab):
                break
            os.kill(reader.pid, signal.SIGCONT)
            time.sleep(0.003)
        else:
            raise AssertionError("never caught within a stop")
        os.kill(reader.pid, how)
        began = time.monotonic()
        while not running(lab):
            assert time.monotonic() - began < 30
            time.sleep(0.01)
        print(f"{how.name}: the guest ran after {1000 * (time.monotonic() - began):.0f} ms")
        reader.kill()
    assert lab.run(["true"]).status == 0
    deadline = time.monotonic() + 30
    while True:
        try:
            with Session(str(lab.monitor)) as session:
                assert isinstance(session.guest.memory, StubMemory)
                assert session.os.kernel.snapshot(0, "").tasks
            break
        except TargetError:  # the watchdog may still be on its way out
            if time.monotonic() > deadline:
                raise
    assert leftovers(lab) == []


def test_a_guest_in_another_pid_namespace_is_recorded_and_replayed(boot: Boot, tmp_path: Path) -> None:
    """Its process is not in our /proc; keyframes are read in one pause, pages are what a replay reads."""
    lab = boot(ram="private", memory=256)
    elsewhere = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    shown = pse("ps", str(lab.monitor), prefix=elsewhere)
    assert shown.returncode == 0, shown.stderr
    job = lasting(lab, 4)
    options = ("-o", str(tmp_path / "run.pse"), "--mode", "poll", "--keyframe-start")
    with Watch(str(lab.monitor), *options, verb="record", prefix=elsewhere) as made:
        made.shown(job.wait_pid(), "info")
        job.kill(signal.SIGTERM)
        end = made.shown(job.wait_pid(), "end")
        (recorder,) = Path(f"/proc/{made.pid}/task/{made.pid}/children").read_text().split()
        os.kill(int(recorder), signal.SIGINT)  # unshare ignores it
        assert made.wait(60) == 0, made.errors
    job.wait(check=False)
    assert end["process"]["exit_code"] == 4
    replayed = pse("replay", str(tmp_path / "run.pse"), "--json")
    assert replayed.returncode == 0
    assert list(map(json.loads, replayed.stdout.splitlines())) == made.documents
    with open_recording(tmp_path / "run.pse") as recording:
        assert [step.still for step in recording.steps() if step.kind == "frame"] == [True]
    assert running(lab)
    assert leftovers(lab) == []
