"""A watcher that is suspended while the guest stands for it, and woken when the guest has been let go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from live.hypervisors.qemu.gdbstub import physical
from live.watch.session import Session
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.hypervisors.test_stub_memory import leftovers, running
from tests.watch import Watch, environment, pse

_SUSPENDED = """
import os, signal, sys
from live.hypervisors.qemu import guest
from live.hypervisors.qemu.guest import attach
from live.hypervisors.qemu.gdbstub.physical import PhysicalClient
from live.core.errors import NotPermitted, PseError
exchange = PhysicalClient._exchange
def suspended(self, payloads):
    if len(payloads) > 2:  # one that reads, not the greeting
        PhysicalClient._exchange = exchange
        os.kill(os.getpid(), signal.SIGSTOP)
    return exchange(self, payloads)
def refuse(*_, **__):
    raise NotPermitted('no.')
"""
_MEMORY = """
guest.open_memory = refuse
with attach(sys.argv[1]) as attached:
    PhysicalClient._exchange = suspended
    try:
        attached.memory.refresh()
        attached.memory.read(0x1000000, 16)
    except PseError as error:
        print(type(error).__name__, error)
"""


def let_go(lab: Guest) -> None:
    """The watchdog lets the guest run."""
    deadline = time.monotonic() + 30
    while not running(lab):
        assert time.monotonic() < deadline, "the watchdog did not let it go"
        time.sleep(0.05)


def test_the_guest_runs_after_a_watcher_woke_up_within_an_exchange(boot: Boot) -> None:
    lab = boot()
    with subprocess.Popen(
        [sys.executable, "-c", _SUSPENDED + _MEMORY, str(lab.monitor)],
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as watcher:
        os.waitid(os.P_PID, watcher.pid, os.WSTOPPED | os.WNOWAIT)
        assert not running(lab)
        let_go(lab)
        watcher.send_signal(signal.SIGCONT)
        began = time.monotonic()
        out, _ = watcher.communicate(timeout=physical.TIMEOUT + 10)
        print(f"{time.monotonic() - began:.1f} s: {out.strip()}")
    assert out.startswith("TargetError")
    assert running(lab)
    assert lab.run(["true"]).status == 0
    with Session(str(lab.monitor)) as session:
        assert session.os.kernel.snapshot(0, "").tasks
    assert leftovers(lab) == []


def test_the_guest_runs_after_a_watch_in_gdbstub_mode_was_suspended(boot: Boot) -> None:
    """As with Ctrl-Z: it comes back when the watchdog has let the guest go, and says that it is over."""
    lab = boot()
    with Watch(str(lab.monitor), "--mode", "gdbstub") as watch:
        os.kill(watch.pid, signal.SIGSTOP)
        job = lab.start(["true"])
        time.sleep(0.5)
        assert not running(lab), "it stands at a trap"
        let_go(lab)
        job.wait(30)
        os.kill(watch.pid, signal.SIGCONT)
        status = watch.wait(30)
    print(f"{status}: {watch.errors}")
    assert status == 1
    assert "was let go" in watch.errors
    assert running(lab)
    assert lab.run(["true"]).status == 0
    assert leftovers(lab) == []
    again = pse("watch", str(lab.monitor), "--mode", "gdbstub", "--count", "1")
    assert again.returncode == 0, again.stderr
