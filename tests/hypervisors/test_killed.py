"""The watcher is killed in the middle of a hold: the guest goes on, and another can attach."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import TargetError
from live.core.hypervisor import Guest as Attached
from live.core.traps import CodeHit, TrapRequest
from live.hypervisors.qemu.guest import attach
from live.watch import modes
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.hypervisors import sockets
from tests.hypervisors.test_contract import drain, symbols
from tests.watch import PSE, Watch, environment, pse

WATCHER = """
import sys, time
from live.arch.x86_64 import X86_64
from live.core.traps import CodeHit, TrapRequest
from live.hypervisors.qemu.guest import attach
from live.watch.modes import choose
guest = attach(sys.argv[1])
source = choose(guest, X86_64, sys.argv[2], frozenset({CodeHit}), hold=60).source
source.arm(TrapRequest(code=frozenset({int(sys.argv[3])})))
print("armed", flush=True)
assert source.wait(None).held
print("held", flush=True)
time.sleep(600)
"""


def choose(guest: Attached, mode: str = modes.AUTO) -> modes.Choice:
    """Where breakpoints are wanted."""
    return modes.choose(guest, X86_64, mode, frozenset({CodeHit}))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["plugin", "gdbstub"])
def test_killed_in_a_hold(mode: str, how: signal.Signals, boot: Boot) -> None:
    argument = sockets.plugin("kill")
    guest = boot(cpus=2, plugins=(argument,))
    address = symbols(guest, "wake_up_new_task")["wake_up_new_task"]
    command = [sys.executable, "-c", WATCHER, str(guest.pid), mode, str(address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "armed\n"
        job = guest.start(["true"])
        assert watcher.stdout.readline() == "held\n"
        watcher.send_signal(how)
        watcher.wait()
        job.wait(30)  # half of what it was held for
    deadline = time.monotonic() + 30
    while True:  # the watchdog of gdbstub mode may still be on its way out
        try:
            with attach(str(guest.pid)) as attached:
                assert attached.pauses is not None
                assert not attached.pauses.paused()
                source = choose(attached, mode).source
                assert source is not None
                source.arm(TrapRequest(code=frozenset({address})))
                hits = drain(source, lambda: guest.start(["true"]).wait(20) and None)
                source.close()
            break
        except TargetError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    assert [hit.pc for hit in hits] == [address]


@pytest.mark.parametrize("mode", ["plugin", "gdbstub", "poll"])
def test_pse_watch_is_killed_in_a_hold(mode: str, boot: Boot) -> None:
    """As a user has it: the hold would last for a second; with the watcher dead it is over at once."""
    guest = boot(cpus=2, plugins=(sockets.plugin("kill"),))
    with Watch(str(guest.monitor), "--mode", mode) as watch:
        os.kill(watch.pid, signal.SIGSTOP)  # whatever is trapped now is held
        job = guest.start(["true"])
        time.sleep(0.3)
        assert job.running == (mode != "poll")
        killed = time.monotonic()
        os.kill(watch.pid, signal.SIGKILL)
        job.wait(30)
        print(
            f"{mode}: the guest ran {1000 * (time.monotonic() - killed):.0f} ms after the watcher was killed"
        )
    again = pse("watch", str(guest.monitor), "--mode", mode, "--count", "1")
    assert again.returncode == 0, again.stderr
    assert f"{mode} mode" in again.stderr


@pytest.mark.parametrize("protocol", ["qmp", "hmp"])
def test_pse_record_is_killed_in_a_keyframe(boot: Boot, tmp_path: Path, protocol: str) -> None:
    """The keyframe had paused the guest through its monitor: with the recorder dead it goes on at once."""
    option = {"qmp": "-qmp", "hmp": "-monitor"}[protocol]
    monitor = tmp_path / "monitor"
    guest = boot(fresh=True, extra=(option, f"unix:{monitor},server=on,wait=off"))

    def record(name: str) -> subprocess.Popen[bytes]:
        command = [*PSE, "record", str(monitor), "-o", str(tmp_path / name)]
        command += ["--mode", "poll", "--keyframe-start"]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())

    def until(condition: Callable[[], bool], seconds: float) -> float:
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds
            time.sleep(0.005)
        return time.monotonic() - began

    def running() -> bool:
        return bool(guest.qmp("query-status")["running"])

    for name in "abc":
        with record(name) as recorder:
            until(lambda: not running(), 60)
            recorder.kill()
            seconds = until(running, 30)
        print(f"{protocol}: the guest ran {1000 * seconds:.0f} ms after the recorder was killed")
        assert guest.run(["true"]).status == 0
    # The same in a pause by somebody else, which stays theirs.
    guest.stop()
    with record("d") as recorder:
        until((tmp_path / "d").exists, 60)
        time.sleep(0.3)
        assert recorder.poll() is None
        recorder.kill()
    time.sleep(1)
    assert not running()
    guest.cont()
    again = pse("watch", str(monitor), "--mode", "poll", "--count", "1")
    assert again.returncode == 0, again.stderr


def test_modes(boot: Boot) -> None:
    guest = boot(fresh=True, plugins=(sockets.plugin("modes"),))
    with attach(str(guest.pid)) as attached:
        best = choose(attached)
        assert (best.mode, best.skipped) == ("plugin", ())
        second = choose(attached)
        assert (second.mode, second.source) == ("poll", None)
        assert second.skipped[0].startswith("plugin: The plugin at ")
        assert second.skipped[1].startswith("gdbstub: under TCG, and with breakpoints, ")
        second = choose(attached, "gdbstub")
        assert best.source is not None
        assert second.source is not None
        second.source.close()
        best.source.close()
        poll = choose(attached, "poll")
        assert (poll.mode, poll.source) == ("poll", None)
        with pytest.raises(
            TargetError,
            match=r"cannot be watched in magic mode; it can in: plugin, gdbstub, asid, diff, poll\.",
        ):
            choose(attached, "magic")


def test_old_qemu_has_no_plugin_mode_and_says_so(boot: Boot) -> None:
    guest = boot(qemu="7.2")
    with attach(str(guest.pid)) as attached:
        with pytest.raises(TargetError, match=r"^QEMU 7\.2\.\d+ is too old for the trap plugin"):
            choose(attached, "plugin")
        assert choose(attached).mode == "poll"
        choice = choose(attached, "gdbstub")
        assert choice.source is not None
        address = symbols(guest, "wake_up_new_task")["wake_up_new_task"]
        choice.source.arm(TrapRequest(code=frozenset({address})))
        hits = drain(choice.source, lambda: guest.start(["true"]).wait(20) and None)
        assert [hit.pc for hit in hits] == [address]
        choice.source.close()


@pytest.mark.parametrize("seconds", [5, pytest.param(120, marks=pytest.mark.deep)])
@pytest.mark.parametrize("mode", ["plugin", "gdbstub"])
def test_attaching_and_detaching_leave_nothing(boot: Boot, mode: str, seconds: float) -> None:
    """No descriptor, thread or memory: neither ours nor QEMU's."""
    argument = sockets.plugin("kill")
    guest = boot(cpus=2, plugins=(argument,))
    request = TrapRequest(code=frozenset(symbols(guest, "wake_up_new_task").values()))

    def state() -> tuple[int, int, int]:
        ours, theirs = (len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", guest.pid))
        return ours, theirs, len(os.listdir("/proc/self/task"))

    def cycle() -> None:
        with attach(str(guest.pid)) as attached:
            source = choose(attached, mode).source
            assert source is not None
            source.arm(request)
            source.close()

    def cycles(duration: float) -> int:
        until, count = time.monotonic() + duration, 0
        while time.monotonic() < until:
            cycle()
            count += 1
            guest.qmp("query-status")  # else QEMU keeps the lab's monitor events, STOP and RESUME, for it
        return count

    cycles(seconds / 2)  # caches fill, allocators find their size
    time.sleep(0.5)
    before, memory, blocks = state(), anonymous(guest), allocated()
    count = cycles(seconds / 2)
    # The plugin lets go of a session, and a thread of ours ends, a moment after close().
    for _ in range(100):
        after = state()
        if all(now <= then for now, then in zip(after, before, strict=True)):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"{after}, before {before}")
    grown = [now - then for now, then in zip(anonymous(guest), memory, strict=True)]
    blocks = allocated() - blocks
    print(f"{mode}: {count} cycles; we grew by {blocks} objects, {grown[0]} KiB, QEMU by {grown[1]} KiB")
    assert blocks < 500 + count / 4
    assert grown[0] < 4096  # Python's table of interned strings doubles once in a while, by megabytes
    assert grown[1] < 64 + count / 20
    for pid in ("self", guest.pid):
        assert "memfd:pse-trap" not in Path(f"/proc/{pid}/maps").read_text(), "a session's ring is unmapped"
    assert guest.run(["true"]).status == 0


def allocated() -> int:
    """Blocks that Python's allocator has given out: every small object is one."""
    gc.collect()
    return sys.getallocatedblocks()


def anonymous(guest: Guest) -> tuple[int, int]:
    """KiB of anonymous memory: ours, and QEMU's."""
    found = []
    for pid in ("self", guest.pid):
        (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "RssAnon" in x]
        found.append(int(line.split()[1]))
    return found[0], found[1]


def test_a_pause_by_somebody_else_does_not_end_a_gdbstub_watch(boot: Boot) -> None:
    """virsh suspend and resume, a snapshot: the guest stands as long as they say, and is watched after it."""
    guest = boot(fresh=True)
    with Watch(str(guest.monitor), "--mode", "gdbstub") as watch:
        guest.run(["true"])
        guest.stop()
        time.sleep(0.7)
        assert guest.qmp("query-status")["status"] == "paused"
        guest.cont()
        time.sleep(0.5)
        job = guest.start(["sh", "-c", "exit 7"])
        job.wait(30, check=False)
        time.sleep(0.5)
    assert watch.status == 0, watch.errors
    ends = [d["process"].get("exit_code") for d in watch.documents if d["process"]["pid"] == job.wait_pid()]
    assert ends[-1] == 7
    assert watch.missed == 0
    assert guest.run(["true"]).status == 0, "detached, it runs on"
    assert guest.qmp("query-status")["status"] == "running"
