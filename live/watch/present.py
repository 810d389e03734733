"""What is there at one moment, as events: for whoever does not want to watch."""

from __future__ import annotations

from live.core.events import Event, ExitStatus, Occasion, ProcessEnd, ProcessStart, StartReason
from live.core.system import OperatingSystem


def present(system: OperatingSystem, time_ns: int) -> list[Event]:
    """Every thread group on the task list: a start for what runs, an end for a zombie.

    ``time_ns``: UTC ns by the observer's clock.  Raises `MemoryFault` if not even the head of the list can
    be read.
    """
    snapshot = system.snapshot(time_ns, "attach")
    occasion = Occasion(time_ns=time_ns, trigger=snapshot.trigger, boottime=system.uptime())
    events: list[Event] = []
    for task in snapshot.tasks:
        process = system.describe(task)
        if task.dead:
            status = ExitStatus.from_kernel(task.exit_code)
            events.append(ProcessEnd(process=process, reason=status.reason, status=status, occasion=occasion))
        else:
            events.append(ProcessStart(process=process, reason=StartReason.RUNNING, occasion=occasion))
    return events
