"""One contract for every source of traps: the fake, the plugin, the gdb stub."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from live.core.errors import GuestGone, TargetError
from live.core.memory import GuestVirtual
from live.core.traps import CodeHit, Entry, Fence, Trap, TrapRequest, TrapSource
from live.hypervisors.qemu import attach
from live.hypervisors.qemu.gdbstub.source import GdbSource
from live.hypervisors.qemu.plugin.source import PluginSource
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.hypervisors import sockets
from tests.hypervisors.fake import FakeSource, code_hit

HOLD = 2.0  # seconds; a loaded machine keeps the reader away for a while
FUNCTIONS = ("wake_up_new_task", "proc_exec_connector", "taskstats_exit")


@dataclass
class Bench:
    """A source, and a way to make its traps happen."""

    source: TrapSource
    addresses: dict[str, GuestVirtual]
    start: Callable[[int], Callable[[], None]]
    """start(n): n processes begin (each forks, execs, exits); the result waits for their end."""
    reopen: Callable[[], TrapSource]


def symbols(guest: Guest, *names: str) -> dict[str, GuestVirtual]:
    """Addresses from the guest's own kallsyms."""
    found = {}
    pattern = f" [tTbBdD] ({'|'.join(names)})$"
    for line in guest.run(["grep", "-E", pattern, "/proc/kallsyms"]).output.splitlines():
        address, _, name = line.split()
        found[name] = GuestVirtual(int(address, 16))
    return found


@pytest.fixture(params=["fake", "plugin", "gdbstub"])
def bench(request: pytest.FixtureRequest, boot: Boot) -> Iterator[Bench]:
    if request.param == "fake":
        fake = FakeSource()
        names = (*FUNCTIONS, "entry_SYSCALL_64")
        addresses = {name: GuestVirtual(0xFFFF_FFFF_8100_0000 + at * 64) for at, name in enumerate(names)}

        def script(count: int) -> Callable[[], None]:
            hits = [code_hit(0, pc) for _ in range(count) for pc in map(addresses.get, FUNCTIONS)]
            fake.script.extend(
                code_hit(number, hit.pc) for number, hit in enumerate(hits, fake.counters.delivered + 1)
            )
            return lambda: None

        yield Bench(fake, addresses, script, lambda: fake)
        return
    guest = boot(plugins=(sockets.plugin("contract"),))
    with attach(str(guest.pid)) as attached:

        def reopen() -> TrapSource:
            if request.param == "gdbstub":
                return GdbSource(attached, HOLD)
            assert attached.info.plugin_socket is not None
            return PluginSource(attached.info.plugin_socket, attached.memory, HOLD)

        def start(count: int) -> Callable[[], None]:
            job = guest.start(["/programs/fork-exec", str(count)])
            return lambda: job.wait(60) and None

        source = reopen()
        yield Bench(source, symbols(guest, *FUNCTIONS, "entry_SYSCALL_64"), start, reopen)
        source.close()


def drain(source: TrapSource, wait: Callable[[], None], quiet: float = 0.3) -> list[Trap]:
    """Every trap until the workload has ended and nothing more comes."""
    ended = threading.Event()

    def watch() -> None:
        wait()
        ended.set()

    thread = threading.Thread(target=watch)
    thread.start()
    traps = []
    while True:
        was_over = ended.is_set()
        trap = source.wait(quiet)
        if trap is not None:
            traps.append(trap)
            source.resume(trap)
        elif was_over:
            thread.join()
            return traps


def code_of(bench: Bench) -> frozenset[GuestVirtual]:
    return frozenset(bench.addresses[name] for name in FUNCTIONS)


def test_every_hit_once_in_order(bench: Bench) -> None:
    bench.source.arm(TrapRequest(code=code_of(bench)))
    traps = drain(bench.source, bench.start(5))
    names = {bench.addresses[name]: name for name in FUNCTIONS}
    hits = [names[trap.pc] for trap in traps if isinstance(trap, CodeHit)]
    # fork-exec itself is started once by the channel, too, where there is a guest.
    extra = 0 if isinstance(bench.source, FakeSource) else 1
    counts = Counter(hits)
    assert counts["wake_up_new_task"] == counts["taskstats_exit"] == 5 + extra
    assert counts["proc_exec_connector"] in (5, 5 + extra, 5 + 2 * extra)
    assert [trap.sequence for trap in traps] == sorted(trap.sequence for trap in traps)
    assert all(trap.held for trap in traps)
    assert bench.source.counters.delivered == len(traps)
    assert bench.source.counters.dropped == bench.source.counters.hold_timeouts == 0


def test_nothing_is_trapped_before_arming_and_after_disarming(bench: Bench) -> None:
    assert drain(bench.source, bench.start(1)) == []
    bench.source.arm(TrapRequest(code=code_of(bench)))
    bench.source.arm(TrapRequest())
    assert drain(bench.source, bench.start(1)) == []


def test_a_request_replaces_the_one_before(bench: Bench) -> None:
    fork, execute = bench.addresses["wake_up_new_task"], bench.addresses["proc_exec_connector"]
    bench.source.arm(TrapRequest(code=frozenset({fork})))
    assert {trap.pc for trap in drain(bench.source, bench.start(2))} == {fork}
    bench.source.arm(TrapRequest(code=frozenset({execute})))
    assert {trap.pc for trap in drain(bench.source, bench.start(2))} == {execute}


def test_arming_while_a_trap_is_held(bench: Bench) -> None:
    fork, execute = bench.addresses["wake_up_new_task"], bench.addresses["proc_exec_connector"]
    bench.source.arm(TrapRequest(code=frozenset({fork, execute})))
    bench.source.arm(TrapRequest(code=frozenset({fork})))
    wait = bench.start(1)
    trap = bench.source.wait(30)
    assert trap is not None
    assert trap.pc == fork
    bench.source.arm(TrapRequest(code=frozenset({execute})))
    bench.source.resume(trap)
    assert execute in {trap.pc for trap in drain(bench.source, wait)}


def test_no_trap_within_the_time(bench: Bench) -> None:
    bench.source.arm(TrapRequest(code=code_of(bench)))
    started = time.monotonic()
    assert bench.source.wait(0.05) is None
    assert time.monotonic() - started < 2


def test_resuming_twice_or_late_is_harmless(bench: Bench) -> None:
    bench.source.arm(TrapRequest(code=frozenset({bench.addresses["wake_up_new_task"]})))
    wait = bench.start(1)
    trap = bench.source.wait(30)
    assert trap is not None
    bench.source.resume(trap)
    bench.source.resume(trap)
    drain(bench.source, wait)
    bench.source.resume(trap)
    assert drain(bench.source, bench.start(1)) != []


def test_closing_lets_a_held_guest_go_and_another_reader_can_come(bench: Bench) -> None:
    bench.source.arm(TrapRequest(code=frozenset({bench.addresses["wake_up_new_task"]})))
    wait = bench.start(1)
    assert bench.source.wait(30) is not None
    bench.source.close()
    bench.source.close()
    started = time.monotonic()
    wait()
    assert time.monotonic() - started < 30
    again = bench.reopen()
    again.arm(TrapRequest(code=frozenset({bench.addresses["taskstats_exit"]})))
    assert drain(again, bench.start(1)) != []
    again.close()


def fence(code: GuestVirtual) -> Fence:
    """At 32 bytes from its beginning a task_struct of 6.1 has a pointer to its stack."""
    return Fence(code=code, offset=32)


def entries(bench: Bench) -> frozenset[tuple[GuestVirtual, Entry]]:
    return frozenset({(bench.addresses["entry_SYSCALL_64"], Entry.SYSCALL)})


def test_nothing_passes_a_fence(bench: Bench) -> None:
    code = code_of(bench)
    fences = frozenset(map(fence, code - {bench.addresses["taskstats_exit"]}))
    bench.source.arm(TrapRequest(code=code, fences=fences, entries=entries(bench)))
    wait = bench.start(1)
    trap = bench.source.wait(30)
    assert trap is not None
    assert trap.pc == bench.addresses["wake_up_new_task"]
    assert trap.held
    assert bench.source.wait(0.3) is None  # all that follows has to pass it
    bench.source.resume(trap)
    rest = drain(bench.source, wait)
    assert bench.addresses["taskstats_exit"] in {trap.pc for trap in rest}
    assert all(trap.held for trap in rest)
    assert bench.source.counters.hold_timeouts == 0


@pytest.mark.parametrize("bench", ["plugin"], indirect=True)
def test_a_fence_has_a_limit_and_traps_go_on(bench: Bench) -> None:
    fork = bench.addresses["wake_up_new_task"]
    fences = frozenset({fence(fork)})
    bench.source.arm(TrapRequest(code=frozenset({fork}), fences=fences, entries=entries(bench)))
    wait = bench.start(0)
    trap = bench.source.wait(30)
    assert trap is not None
    wait()  # nobody resumes
    assert bench.source.counters.hold_timeouts == 1
    assert bench.source.counters.held_ns > HOLD * 1e9
    bench.source.resume(trap)
    assert [trap.held for trap in drain(bench.source, bench.start(1))] == [True, True]


@pytest.mark.parametrize("bench", ["plugin", "gdbstub"], indirect=True)
def test_a_hold_has_a_limit_and_traps_go_on(bench: Bench) -> None:
    bench.source.arm(TrapRequest(code=frozenset({bench.addresses["wake_up_new_task"]})))
    wait = bench.start(0)  # one process: fork-exec itself
    trap = bench.source.wait(30)
    assert trap is not None
    assert trap.held
    wait()  # nobody resumes
    assert bench.source.counters.hold_timeouts == 1
    bench.source.resume(trap)
    assert [trap.held for trap in drain(bench.source, bench.start(1))] == [True, True]


@pytest.mark.parametrize("bench", ["plugin", "gdbstub"], indirect=True)
def test_a_hold_has_a_limit_where_nobody_waits_for_traps(bench: Bench) -> None:
    """As in a callback that takes its time, behind the trap that it is called for."""
    time.sleep(3)  # nor is anything made of it that nothing happens
    bench.source.arm(TrapRequest(code=frozenset({bench.addresses["wake_up_new_task"]})))
    bench.start(0)()
    assert bench.source.counters.hold_timeouts == 1
    drain(bench.source, lambda: None)  # what is not waited for any more
    assert [trap.held for trap in drain(bench.source, bench.start(1))] == [True, True]


@pytest.mark.parametrize("bench", ["plugin"], indirect=True)
def test_a_second_reader_is_told(bench: Bench) -> None:
    with pytest.raises(TargetError, match="serves another reader; end that one first"):
        bench.reopen()


@pytest.mark.parametrize("mode", ["plugin", "gdbstub"])
def test_the_guest_ends(mode: str, boot: Boot) -> None:
    argument = sockets.plugin(f"end-{mode}")
    guest = boot(fresh=True, plugins=(argument,))
    with attach(str(guest.pid)) as attached:
        source: TrapSource = (
            GdbSource(attached)
            if mode == "gdbstub"
            else PluginSource(sockets.path_of(argument), attached.memory)
        )
        source.arm(TrapRequest(code=frozenset(symbols(guest, "machine_halt").values())))
        assert attached.alive()
        guest.close()
        with pytest.raises(GuestGone, match="The guest has ended"):
            source.wait(30)
        assert not attached.alive()
        with pytest.raises(GuestGone, match=r"has ended; start it to watch again\.$"):
            attached.status()
        source.close()
