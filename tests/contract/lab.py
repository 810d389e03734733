"""Guests of the lab as subjects of the contract."""

from __future__ import annotations

import functools
from collections.abc import Callable

from live.core.hypervisor import Guest
from live.core.memory import GuestVirtual
from live.core.traps import Abi, Access, Fence, Watchpoint, Word
from live.hypervisors import registry
from live.testing import Function, Subject, Wait
from live.watch import systems
from live.watch.session import Session
from tests.guest import guest as lab

FUNCTIONS = ("wake_up_new_task", "proc_exec_connector", "taskstats_exit")
ENTRY = "entry_SYSCALL_64"
STACK = 32
"""At so many bytes from its beginning a task_struct of 6.1 has a pointer to its stack."""


@functools.lru_cache(maxsize=64)
def symbols(guest: lab.Guest, *names: str) -> dict[str, GuestVirtual]:
    """Addresses from the guest's own kallsyms."""
    found = {}
    pattern = f" [tTbBdD] ({'|'.join(names)})$"
    for line in guest.run(["grep", "-E", pattern, "/proc/kallsyms"]).output.splitlines():
        address, _, name = line.split()
        found[name] = GuestVirtual(int(address, 16))
    return found


@functools.lru_cache(maxsize=8)
def accesses(guest: lab.Guest) -> frozenset[Watchpoint]:
    """What a watch of this guest by accesses to data would arm."""
    with Session(registry.attach(str(guest.pid))) as session:
        return session.os.points().request(Access).accesses


@functools.lru_cache(maxsize=8)
def words(guest: lab.Guest) -> tuple[Word, ...]:
    """Those that a watch of this guest's asids would compare."""
    with Session(registry.attach(str(guest.pid))) as session:
        return tuple(session.os.asids().words)


def work(guest: lab.Guest) -> Callable[[int], Wait]:
    """n processes, each of which forks, executes and exits; fork-exec is one more itself."""

    def begin(count: int) -> Wait:
        job = guest.start(["/programs/fork-exec", str(count)])
        return lambda: job.wait(60)

    return begin


def trapped(guest: lab.Guest, attach: Callable[[], Guest]) -> Subject:
    """A guest of which everything can be had."""
    found = symbols(guest, *FUNCTIONS, ENTRY)
    fork, execute, end = (found[name] for name in FUNCTIONS)
    return Subject(
        open=attach,
        work=work(guest),
        # The channel starts fork-exec with a fork and up to two execs.
        functions=(
            Function(address=fork, least=1, most=1),
            Function(address=execute, least=0, most=2),
            Function(address=end, least=1, most=1),
        ),
        fences=frozenset(Fence(code=address, offset=STACK) for address in (fork, execute)),
        entries=frozenset({(found[ENTRY], Abi.NATIVE)}),
        accesses=accesses(guest),
        words=words(guest),
        pause=guest.stop,
        resume=guest.cont,
        restore=guest.cont,
        systems=systems.finders(),
        hold=1.5,
        quiet=0.2,
    )


def polled(guest: lab.Guest, attach: Callable[[], Guest]) -> Subject:
    """A guest that can be read, and nothing else."""
    return Subject(open=attach, work=work(guest), systems=systems.finders())


def dying(guest: lab.Guest, attach: Callable[[], Guest], *, functions: bool = True) -> Subject:
    """A guest that may be ended."""
    fork = symbols(guest, FUNCTIONS[0])[FUNCTIONS[0]] if functions else None
    return Subject(
        open=attach,
        work=work(guest) if functions else None,
        functions=(Function(address=fork),) if fork is not None else (),
        end=guest.close,
    )
