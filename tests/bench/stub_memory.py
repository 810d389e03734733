"""What a snapshot costs a guest whose memory is read through the gdb stub, with and without following.

Following: a miss reads what was wanted after the same miss in the snapshot before
(`live.hypervisors.qemu.memory.following`).  Without, it reads its surroundings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from rich.console import Console
from rich.table import Table

from live.core.errors import NotPermitted
from live.hypervisors.qemu import guest as adapter
from live.hypervisors.qemu.memory import stub
from live.hypervisors.qemu.memory.following import Following
from live.watch.session import Session
from tests.guest import Guest, GuestSpec
from tests.guest.command import run_command

SNAPSHOTS = 30
TASKS = (0, 107, 300)
"""At least so many; 0: those of a guest that does nothing."""


class Forgetful(Following):
    """Follows nothing."""

    def turn(self) -> None:
        """Forget everything."""
        super().__init__()


@contextmanager
def attached(guest: Guest, following: type[Following]) -> Iterator[Session]:
    """As where QEMU's memory may not be read."""
    with (
        mock.patch.object(adapter, "open_memory", side_effect=NotPermitted("it may not be read.")),
        mock.patch.object(stub, "Following", following),
        Session(str(guest.monitor)) as session,
    ):
        yield session


def measure(guest: Guest, following: type[Following], *, churn: bool) -> tuple[str, ...]:
    """Tasks; stops a snapshot; milliseconds that the guest stood for one, median and most."""
    stops, stood = [], []
    with attached(guest, following) as session:
        memory = session.guest.memory
        assert isinstance(memory, stub.StubMemory)
        for _ in range(SNAPSHOTS):
            if churn:
                guest.run(["true"])
            before = memory.stops, memory.stood_s
            count = len(session.os.snapshot(0, "").tasks)
            stops.append(memory.stops - before[0])
            stood.append(1000 * (memory.stood_s - before[1]))
    median = statistics.median(stood)
    return str(count), f"{statistics.mean(stops):.1f}", f"{median:.1f}", f"{max(stood):.1f}"


def main() -> None:
    """Boot, measure, print."""
    table = Table(title="one snapshot of the task list, memory through the gdb stub")
    columns = ("tasks", "stops", "stood ms, median", "most")
    for column in ("following", "processes between", *columns):
        table.add_column(column, justify="right" if column in columns else "left")
    with Guest(GuestSpec()) as guest:
        for tasks in TASKS:
            missing = tasks - len(guest.proc_list())
            if missing > 0:
                guest.run("".join("sleep 6000 & " for _ in range(missing)) + ":")
                time.sleep(2)
            for churn in (False, True):
                for following in (Following, Forgetful):
                    name = "yes" if following is Following else "no"
                    row = measure(guest, following, churn=churn)
                    table.add_row(name, "some" if churn else "none", *row)
    Console(width=100).print(table)


if __name__ == "__main__":
    run_command(main)
