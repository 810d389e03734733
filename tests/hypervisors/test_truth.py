"""Traps of the plugin == what the guest's own tracer recorded: number and order, on every vCPU.

The plugin is armed before the tracer starts and disarmed after it stops, so the tracer's record of a CPU must
be a run of consecutive elements of what the plugin saw on that vCPU: nothing missing, more, or swapped.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable

import pytest

from live.arch.x86_64 import X86_64
from live.core.traps import Abi, Action, AsidChange, Syscall, Trap, TrapRequest
from live.hypervisors import registry
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.guest.truth import Truth, TruthOther
from tests.hypervisors import sockets

GETPPID, KILL, EXECVE = 110, 62, 59
FORK32, EXECVE32, VFORK32, EXIT32, GETPID32 = 2, 11, 190, 1, 20
INTEL = "Skylake-Client"  # has page-table isolation on

pytestmark = pytest.mark.parametrize(
    ("cpus", "model"),
    [
        (1, "qemu64"),
        (2, INTEL),
        pytest.param(1, INTEL, marks=pytest.mark.deep),
        pytest.param(2, "qemu64", marks=pytest.mark.deep),
        pytest.param(4, "qemu64", marks=pytest.mark.deep),
        pytest.param(4, INTEL, marks=pytest.mark.deep),
    ],
)


class Collector:
    """Takes every trap in a thread, until it is told to stop."""

    def __init__(self, guest: Guest, request: TrapRequest) -> None:
        self._attached = registry.attach(str(guest.pid))
        (plugin,) = (offer for offer in self._attached.offers if offer.mode == "plugin")
        self._source = plugin.open(X86_64, frozenset(), hold=1.0)
        self._request = request
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.traps: list[Trap] = []

    def _run(self) -> None:
        while True:
            was_over = self._over.is_set()
            trap = self._source.wait(0.2)
            if trap is not None:
                self.traps.append(trap)
                self._source.resume(trap)
            elif was_over:
                return

    def __enter__(self) -> Collector:
        self._source.arm(self._request)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.counters = self._source.counters
        self._source.close()
        self._attached.close()


def guest_with_plugin(boot: Boot, cpus: int, model: str) -> Guest:
    return boot(cpus=cpus, cpu_model=model, plugins=(sockets.plugin(f"{cpus}-{model}"),))


def is_run_of(part: list[int], whole: list[int]) -> bool:
    """Whether ``part`` is a run of consecutive elements of ``whole``."""
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def squeeze(pids: Iterable[int]) -> list[int]:
    """Without repetitions in a row."""
    return [pid for pid, _ in itertools.groupby(pids)]


def others(truth: Truth, name: str, cpu: int) -> list[TruthOther]:
    return [
        event
        for event in truth.events
        if isinstance(event, TruthOther) and event.name == name and event.cpu == cpu
    ]


def test_system_calls(boot: Boot, cpus: int, model: str) -> None:
    guest = guest_with_plugin(boot, cpus, model)
    with (
        Collector(guest, TrapRequest(every_syscall=Action.RECORD)) as collector,
        guest.truth(events=("raw_syscalls/sys_enter",)) as recorder,
    ):
        guest.run(["/programs/syscalls", "500"])
        guest.run(["/programs/fork-exec", "10"])
        guest.run(["/programs/storm", "0"], check=False)
        guest.run(["/programs/int80", "5"])
        if model == INTEL:
            guest.run(["/programs/sysenter", "3"])
    assert collector.counters.dropped == 0
    seen = [trap for trap in collector.traps if isinstance(trap, Syscall)]
    compat = Counter(trap.number for trap in seen if trap.abi is Abi.COMPAT)
    by_int80 = dict.fromkeys((FORK32, EXECVE32, VFORK32, EXIT32), 5)
    assert compat == by_int80 | ({GETPID32: 3} if model == INTEL else {})
    total: Counter[int] = Counter()
    for cpu in range(cpus):
        calls = [
            int(re.match(r"NR (-?\d+) ", event.text)[1]) for event in others(recorder.truth, "sys_enter", cpu)
        ]  # type: ignore[index]
        total.update(calls)
        assert is_run_of(calls, [trap.number for trap in seen if trap.vcpu == cpu]), f"vCPU {cpu}"
    assert total[GETPPID] == 500
    assert total[EXECVE] >= 13


def test_asid_changes(boot: Boot, cpus: int, model: str) -> None:
    """Shells compete; `kill -0 $$` tells which asid is whose, without a look at the guest's memory."""
    guest = guest_with_plugin(boot, cpus, model)
    guest.run("rm -f /tmp/go /tmp/stop")
    # They live on until the record is over: one that has dropped its mm is switched to without a CR3 write.
    script = (
        "while [ ! -e /tmp/go ]; do :; done; i=0; while [ $i -lt 200 ]; do kill -0 $$; i=$((i+1)); done; "
        "while [ ! -e /tmp/stop ]; do :; done"
    )
    request = TrapRequest(
        asid_changes=Action.RECORD, syscalls=frozenset({KILL}), syscall_action=Action.RECORD
    )
    shells = 2 * cpus + 1
    jobs = [guest.start(script) for _ in range(shells)]
    with Collector(guest, request) as collector:
        with guest.truth(events=("sched/sched_switch",)) as recorder:
            guest.push(b"", "/tmp/go")
            deadline = time.monotonic() + 120
            while sum(isinstance(trap, Syscall) for trap in collector.traps) < 200 * shells:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        guest.push(b"", "/tmp/stop")
        for job in jobs:
            job.wait(120)
    assert collector.counters.dropped == 0
    owner: dict[int, int] = {}
    kills: Counter[int] = Counter()
    for trap in collector.traps:
        if isinstance(trap, Syscall):
            pid = trap.registers["rdi"]
            kills[pid] += 1
            assert owner.setdefault(trap.asid, pid) == pid
    assert sorted(kills.values()) == [200] * shells
    assert all(trap.asid != trap.new_asid for trap in collector.traps if isinstance(trap, AsidChange))
    switches = 0
    for cpu in range(cpus):
        changes = [trap for trap in collector.traps if isinstance(trap, AsidChange) and trap.vcpu == cpu]
        seen = squeeze(owner[trap.new_asid] for trap in changes if trap.new_asid in owner)
        nexts = (
            int(re.search(r"next_pid=(\d+)", event.text)[1])
            for event in others(recorder.truth, "sched_switch", cpu)
        )  # type: ignore[index]
        true = squeeze(pid for pid in nexts if pid in kills)
        switches += len(true)
        assert is_run_of(true[1:], seen), f"vCPU {cpu}"
    assert switches > 2 * shells
