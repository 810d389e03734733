"""A fence stops a vCPU wherever the kernel begins system calls, also in code from before anybody came."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from live.core.memory import GuestVirtual
from live.core.traps import Abi, Fence
from live.watch.session import Session
from tests.guest.fixtures import Boot
from tests.hypervisors import sockets
from tests.hypervisors.test_watched import flushes

INTEL = "Skylake-Client"
AMD = "qemu64"


@pytest.mark.parametrize(
    ("program", "abi", "name", "model", "kernel"),
    [
        ("fork-exec", Abi.NATIVE, "entry_SYSCALL_64", AMD, "6.1"),
        ("fork-exec", Abi.NATIVE, "entry_SYSCALL_64", INTEL, "6.1"),
        ("fork-exec", Abi.NATIVE, "entry_SYSCALL_64", AMD, "5.10"),
        ("fork-exec", Abi.NATIVE, "entry_SYSCALL_64", AMD, "7.2"),
        ("int80", Abi.COMPAT, "entry_INT80_compat", AMD, "5.10"),
        ("int80", Abi.COMPAT, "asm_int80_emulation", AMD, "6.1"),
        ("int80", Abi.COMPAT, "asm_int80_emulation", AMD, "6.12"),
        ("int80", Abi.COMPAT, "asm_int80_emulation", AMD, "7.2"),
        ("sysenter", Abi.COMPAT, "entry_SYSENTER_compat", INTEL, "6.1"),
        ("syscall32", Abi.COMPAT, "entry_SYSCALL_compat", AMD, "6.1"),
    ],
)
def test_a_fence_stops_a_vcpu_at_the_beginning_of_its_next_system_call(
    boot: Boot, *, program: str, abi: Abi, name: str, model: str, kernel: str
) -> None:
    # A guest of its own: an entry that one test has armed is instrumented for good.
    plugin = sockets.plugin(f"fence-{program}-{model}-{kernel}")
    guest = boot(cpu_model=model, kernel=kernel, plugins=(plugin,))
    guest.run([program, "2"])
    with Session(str(guest.monitor)) as session:
        at = session.os.kernel.address(name)
        source, registers = session.choose("plugin").source, session.guest.registers
        assert source is not None
        assert registers is not None
        fork = GuestVirtual(session.os.kernel.address("wake_up_new_task"))
        mm = session.os.kernel.symbols.offset("task_struct", "mm")
        request = session.request(source)
        assert (at, abi) in request.entries
        source.arm(
            replace(
                request,
                code=frozenset({fork}),
                fences=frozenset({Fence(code=fork, offset=mm)}),
                entries=frozenset({(at, abi)}),
            )
        )
        job, stopped = guest.start([program, "1"]), []
        while job.running:
            trap = source.wait(0.2)
            if trap is None:
                continue
            task = session.os.kernel.read_task(trap.registers["rdi"])
            # Not the program's own process, which may have come to its exec by now.
            if task.fresh and task.comm == program.encode():
                time.sleep(0.3)  # whatever it does meanwhile
                stopped.append(registers.read(trap.vcpu)["rip"])
            source.resume(trap)
        timeouts = source.counters.hold_timeouts
        source.close()
        assert "running" in guest.hmp("info status")
    assert set(stopped) == {at}
    assert timeouts == 0
    assert flushes(guest) == 1
