"""Traps of asids and system calls on a real guest: what the filters beside the vCPU let through."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from live.core.traps import Action, AsidChange, Syscall, Trap, TrapRequest, TrapSource
from live.testing.traps import arriving, drain
from live.watch.asid_stepper import stepper_of
from live.watch.session import Session
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest
from tests.hypervisors import sockets

VFORK, CLONE3 = 58, 435
IDLE_S = 2.0


@contextlib.contextmanager
def watched(guest: Guest) -> Iterator[tuple[Session, TrapSource]]:
    """The guest, and a source of traps of asids."""
    with Session(str(guest.monitor)) as session:
        choice = session.choose("asid")
        assert choice.source is not None
        with contextlib.closing(choice):
            yield session, choice.source


def traps_of(guest: Guest, source: TrapSource, *argv: str) -> list[Trap]:
    job = guest.start(list(argv))
    return drain(source, lambda: job.wait(60))


def test_calls_that_share_an_asid_and_no_others(boot: Boot) -> None:
    """fork() is clone() without CLONE_VM: none of the flags, no trap."""
    guest = boot(plugins=(sockets.plugin("calls"),))
    with watched(guest) as (session, source):
        rules = session.os.asids()
        source.arm(
            TrapRequest(
                syscalls=rules.syscalls, compat_syscalls=rules.compat_syscalls, call_flags=rules.call_flags
            )
        )
        seen = {}
        for name in ("fork-exit", "vfork-exit", "clone3", "int80", "threads"):
            job = guest.start([f"/programs/{name}", "9"])
            seen[name] = Counter[tuple[int, str, bool]]()
            for trap in arriving(source, lambda job=job: job.wait(60)):  # type: ignore[misc]
                assert isinstance(trap, Syscall)
                assert trap.held
                # While it is: what it points to is the caller's.
                seen[name][trap.number, trap.abi.name, rules.shares(trap)] += 1
                source.resume(trap)
    assert seen["fork-exit"] == {}
    assert seen["vfork-exit"] == {(VFORK, "NATIVE", True): 9}
    assert seen["clone3"] == {(CLONE3, "NATIVE", False): 9}
    assert seen["int80"] == {(190, "COMPAT", True): 9}
    assert sum(seen["threads"].values()) >= 9
    assert not any(shares for _, _, shares in seen["threads"])


def test_an_idle_or_computing_guest_is_left_alone(boot: Boot) -> None:
    """All asids are settled, and no word moves."""
    guest = boot(cpus=2, plugins=(sockets.plugin("idle"),))
    job = guest.start("i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); done")
    with watched(guest) as (session, source):
        asids = stepper_of("asid", session.os, session.machine)
        assert asids.request is not None
        source.arm(asids.request)
        asids.snapshot(0, "attach")
        source.arm(asids.request)
        traps = []
        for _ in range(20):  # what was on its way
            trap = source.wait(IDLE_S / 20)
            if trap is not None:
                traps.append(trap)
                asids.trap(trap, 0, 0)
                source.arm(asids.request)
                source.resume(trap)
        quiet = source.wait(IDLE_S)
        assert quiet is None, f"{quiet} of a guest that only computes"
    guest.push(b"", "/tmp/enough")
    job.wait(60)


def test_every_process_moves_a_word_that_is_told(boot: Boot) -> None:
    """At the change to its asid, and before it has made a system call."""
    guest = boot(plugins=(sockets.plugin("words"),))
    with watched(guest) as (session, source):
        words = tuple(session.os.asids().words)
        forks = words[0]
        begin = session.counters().forks
        source.arm(TrapRequest(words=words))
        traps = traps_of(guest, source, "/programs/fork-exit", "20")
        made = session.counters().forks - begin
    assert all(isinstance(trap, AsidChange) and trap.moved and trap.held for trap in traps)
    told = [trap for trap in traps if isinstance(trap, AsidChange) and forks.gpa in trap.words]
    assert made >= 20
    assert len(told) == made


def test_a_word_is_compared_whatever_else_is_armed(boot: Boot) -> None:
    """Replacing the words keeps what moved since they were last compared."""
    guest = boot(plugins=(sockets.plugin("rearmed"),))
    with watched(guest) as (session, source):
        words = tuple(session.os.asids().words)
        source.arm(TrapRequest(words=words, asid_changes=Action.HOLD))
        moved = 0
        job = guest.start(["/programs/fork-exit", "20"])
        while (trap := source.wait(0.3)) is not None or job.running:
            if trap is not None:
                assert isinstance(trap, AsidChange)
                moved += words[0].gpa in trap.words
                source.arm(TrapRequest(words=words[:: -1 if moved % 2 else 1], asid_changes=Action.HOLD))
                source.resume(trap)
    assert moved >= 20
