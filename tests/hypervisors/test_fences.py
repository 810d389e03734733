"""A fence stops a vCPU wherever the kernel begins system calls, also in code from before anybody came."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from live.core.memory import GuestVirtual
from live.core.traps import Entry, Fence
from live.watch.session import Session
from tests.guest.fixtures import Boot
from tests.hypervisors import sockets
from tests.hypervisors.test_watched import flushes

INTEL = "Skylake-Client"
AMD = "qemu64"


@pytest.mark.parametrize(
    ("program", "entry", "name", "model", "kernel"),
    [
        ("fork-exec", Entry.SYSCALL, "entry_SYSCALL_64", AMD, "6.1"),
        ("fork-exec", Entry.SYSCALL, "entry_SYSCALL_64", INTEL, "6.1"),
        ("fork-exec", Entry.SYSCALL, "entry_SYSCALL_64", AMD, "5.10"),
        ("fork-exec", Entry.SYSCALL, "entry_SYSCALL_64", AMD, "7.2"),
        ("int80", Entry.INT80, "entry_INT80_compat", AMD, "5.10"),
        ("int80", Entry.INT80, "asm_int80_emulation", AMD, "6.1"),
        ("int80", Entry.INT80, "asm_int80_emulation", AMD, "6.12"),
        ("int80", Entry.INT80, "asm_int80_emulation", AMD, "7.2"),
        ("sysenter", Entry.SYSENTER, "entry_SYSENTER_compat", INTEL, "6.1"),
        ("syscall32", Entry.INT80, "entry_SYSCALL_compat", AMD, "6.1"),
    ],
)
def test_a_fence_stops_a_vcpu_at_the_beginning_of_its_next_system_call(
    boot: Boot, *, program: str, entry: Entry, name: str, model: str, kernel: str
) -> None:
    # One of its own: what code knows of entries, it knows for good.
    plugin = sockets.plugin(f"fence-{program}-{model}-{kernel}")
    guest = boot(cpu_model=model, kernel=kernel, plugins=(plugin,))
    guest.run([program, "2"])
    with Session(str(guest.monitor)) as session:
        at = session.kernel.address(name)
        source = session.choose("plugin").source
        assert source is not None
        fork = GuestVirtual(session.kernel.address("wake_up_new_task"))
        mm = session.kernel.symbols.offset("task_struct", "mm")
        request = session.request(source)
        assert (at, entry) in request.entries
        source.arm(
            replace(
                request,
                code=frozenset({fork}),
                fences=frozenset({Fence(code=fork, offset=mm)}),
                entries=frozenset({(at, entry)}),
            )
        )
        job, stopped = guest.start([program, "1"]), []
        while job.running:
            trap = source.wait(0.2)
            if trap is None:
                continue
            task = session.kernel.read_task(trap.registers["rdi"])
            # Not the program's own process, which may have come to its exec by now.
            if task.fresh and task.comm == program.encode():
                time.sleep(0.3)  # whatever it does meanwhile
                stopped.append(session.guest.registers(trap.vcpu)["rip"])
            source.resume(trap)
        timeouts = source.counters.hold_timeouts
        source.close()
        assert session.guest.status() == "running"
    assert set(stopped) == {at}
    assert timeouts == 0
    assert flushes(guest) == 0
