"""The workload programs as data: what each starts, how often it execs, and how its children end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_CORE = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One run of a program. The program itself is one start, one exec and one end (with 0) more."""

    argv: tuple[str, ...]
    execs: int = 0
    """Successful ones, by its children."""
    ends: dict[int, int] = field(default_factory=dict)
    """Wait status -> how many of its children end with it. Each of them also starts."""

    @property
    def name(self) -> str:
        return " ".join(self.argv)

    @property
    def starts(self) -> int:
        return sum(self.ends.values())


def _exit(code: int) -> int:
    return code << 8


def workloads(n: int, *, group_exit: bool = True) -> list[Workload]:
    """Every workload, about *n* processes each.

    *group_exit* is what the kernel does with a group whose last thread leaves by exit(2): see
    programs/leader-exit.c.
    ``pid-reuse`` comes last: pids are small again afterwards.
    """
    count = str(n)
    return [
        Workload(argv=("fork-exit", count, "5"), ends={_exit(5): n}),
        Workload(argv=("fork-exec", count), execs=n, ends={0: n}),
        Workload(argv=("vfork-exit", count), ends={_exit(3): n}),
        Workload(argv=("vfork-exec", count), execs=n, ends={0: n}),
        Workload(argv=("spawn", count), execs=n, ends={0: n}),
        Workload(argv=("clone3", count), ends={_exit(4): n}),
        Workload(argv=("clone-parent", count), ends={0: 2 * n}),
        Workload(argv=("exec-fail", count), ends={_exit(7): n}),
        Workload(argv=("exec-retry", count), execs=n, ends={0: n}),
        Workload(argv=("exec-chain", count), execs=n, ends={0: 1}),
        Workload(argv=("exec-thread", count), execs=n, ends={0: n}),
        Workload(argv=("execveat", count), execs=n, ends={0: n}),
        Workload(argv=("script", count), execs=n, ends={0: n}),
        Workload(argv=("traced", count), execs=n, ends={0: n}),
        Workload(argv=("exit-codes", "256"), ends={_exit(code): 1 for code in range(256)}),
        Workload(argv=("leader-exit", count, "5"), ends={_exit(6 if group_exit else 5): n}),
        Workload(argv=("thread-exit-group", count), ends={_exit(9): n}),
        Workload(argv=("threads", count)),
        Workload(argv=("fork-thread", count), ends={0: n}),
        Workload(argv=("killed", count), ends={9: n}),
        Workload(argv=("killed", count, "15"), ends={15: n}),
        Workload(argv=("segv", count), ends={11 | _CORE: n}),
        Workload(argv=("zombie", count, "50"), ends={_exit(2): n}),
        Workload(argv=("daemon", count), ends={0: 2 * n}),
        Workload(argv=("brief", count), ends={0: n}),
        Workload(argv=("storm", "3", "3"), ends={0: 3 + 9 + 27}),
        Workload(argv=("pid-namespace", count), ends={_exit(11): n, 0: n}),
        Workload(argv=("int80", count), execs=n, ends={0: n, _exit(12): n}),
        Workload(argv=("pid-reuse", str(max(600, n)), "400"), ends={0: max(600, n)}),
    ]


def ends_of(statuses: list[int | None]) -> dict[int | None, int]:
    """Count wait statuses, as in ``Workload.ends``."""
    return dict(Counter(statuses))
