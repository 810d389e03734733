"""What is measured: the cases, and the torture that each guest goes through, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.guest import GuestSpec
from tests.guest.workloads import Workload, workloads

PTI_MODEL = "Skylake-Client"
"""A CPU model that Linux believes to be vulnerable to Meltdown."""

PROCESSES = {"plugin": 10_000, "gdbstub": 2_000, "asid": 10_000, "diff": 2_000, "poll": 1_000}
QUICK = {"plugin": 300, "gdbstub": 100, "asid": 300, "diff": 100, "poll": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One guest, watched in one mode."""

    kernel: str
    mode: str
    cpus: int = 1
    pti: bool = False

    def spec(self, *, stress: bool) -> GuestSpec:
        """The guest to boot."""
        model = PTI_MODEL if self.pti else "qemu64"
        memory = 1024 if stress else 512
        return GuestSpec(kernel=self.kernel, cpus=self.cpus, cpu_model=model, stress=stress, memory=memory)

    def __str__(self) -> str:
        """For messages."""
        return f"{self.kernel} {self.mode} {self.cpus} vCPU{'s' * (self.cpus > 1)}{' PTI' * self.pti}"


ROWS = {
    "fork-exit": "fork, exit with a code",
    "fork-exec": "fork, exec, exit",
    "vfork-exit": "vfork without exec",
    "vfork-exec": "vfork, exec",
    "spawn": "posix_spawn",
    "clone3": "clone3",
    "clone-parent": "clone with CLONE_PARENT",
    "exec-fail": "failed exec",
    "exec-retry": "failed, then successful exec",
    "exec-chain": "exec after exec by one process",
    "exec-thread": "exec from a thread that is not the leader",
    "execveat": "execveat",
    "script": "script with #!",
    "traced": "exec under ptrace",
    "exit-codes": "all 256 exit codes",
    "leader-exit": "leader exits early, a thread lives on",
    "thread-exit-group": "exit_group from a thread",
    "threads": "threads: no event",
    "fork-thread": "fork from a thread",
    "killed": "killed: SIGKILL, SIGTERM (signal, no code)",
    "segv": "SIGSEGV with the core flag",
    "zombie": "zombie, reaped late",
    "daemon": "daemon (double fork, setsid)",
    "brief": "lives as short as it can",
    "storm": "a tree of forks at once",
    "pid-namespace": "pid namespaces",
    "int80": "32-bit system calls (int 0x80)",
    "pid-reuse": "pids reused within a second",
}
"""Workload program -> the row of the event contract that it is for."""

# Stressor -> how many operations for each 100 of a chunk; some of them are very slow when emulated.
_STRESSORS = {
    "fork": 200,
    "vfork": 200,
    "vforkmany": 25,
    "clone": 100,
    "exec": 50,
    "daemon": 100,
    "zombie": 150,
    "kill": 200,
    "pthread": 100,
}
MIX = ("fork", "vfork", "clone", "daemon", "zombie", "kill", "pthread")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A command in the guest; ``row`` is what it counts for, ``expected`` what it is known to do."""

    argv: tuple[str, ...]
    row: str
    expected: Workload | None = None


def known(kernel: str, n: int, names: tuple[str, ...] = ()) -> list[Work]:
    """The lab's own workloads of about ``n`` processes each; those named, or all."""
    return [
        Work(argv=work.argv, row=ROWS[work.argv[0]], expected=work)
        for work in workloads(n, group_exit=kernel != "5.10")
        if not names or work.argv[0] in names
    ]


def stress(n: int, *, timeout: int = 30) -> list[Work]:
    """stress-ng's stressors one by one, and all of them at once."""
    work = []
    for name, share in _STRESSORS.items():
        argv = ("stress-ng", f"--{name}", "1", f"--{name}-ops", str(max(1, share * n // 100)))
        work.append(_stress(argv, f"stress-ng --{name}", timeout, nobody=name == "exec"))
    argv = ("stress-ng",)
    for name in MIX:
        argv += (f"--{name}", "1", f"--{name}-ops", str(max(1, _STRESSORS[name] * n // 400)))
    return [*work, _stress(argv, "stress-ng, a mix", timeout, nobody=False)]


def _stress(argv: tuple[str, ...], row: str, timeout: int, *, nobody: bool) -> Work:
    # The exec stressor refuses to run as root.
    return Work(argv=(*(("as-nobody",) if nobody else ()), *argv, "--timeout", str(timeout)), row=row)


def chunks(case: Case, processes: int, *, with_stress: bool) -> Iterator[list[Work]]:
    """Portions, without end: the guest's trace buffer holds one.  The caller stops when it has enough."""
    n = max(2, min(135, processes // 40))
    if with_stress:
        yield stress(max(5, min(n, 100)), timeout=30)
    while True:
        yield known(case.kernel, n)


def all_cases(kernels: list[str], modes: list[str], cpus: list[int], pti: list[bool]) -> list[Case]:
    """Every combination; poll mode looks at memory only, so vCPUs and PTI change nothing there: one each."""
    cases = []
    for mode in modes:
        for isolated in pti:
            for count in cpus:
                for kernel in kernels:
                    if mode == "poll" and (count, isolated) != (cpus[0], pti[0]):
                        continue
                    cases.append(Case(kernel=kernel, mode=mode, cpus=count, pti=isolated))
    return cases
