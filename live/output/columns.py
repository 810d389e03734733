"""The columns of table and plain output, and the values of an event that all outputs share."""

from __future__ import annotations

import datetime
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass

from live.core.events import EndReason, Event, Process, ProcessEnd, ProcessExec, ProcessStart


@dataclass(frozen=True, slots=True)
class Column:
    """A column: ``title`` as printed; ``width`` in characters, 0: the rest of the line; ``value``."""

    title: str
    width: int
    value: Callable[[Event], int | str | datetime.datetime | None]
    right: bool = False


def process_of(event: Event) -> Process:
    """The process that an event is about; the new one for an exec."""
    return event.new if isinstance(event, ProcessExec) else event.process


def action(event: Event) -> str:
    """``start``, ``exec`` or ``end``."""
    if isinstance(event, ProcessStart):
        return "start"
    return "end" if isinstance(event, ProcessEnd) else "exec"


def reason(event: Event) -> str:
    """The reason: ``running``, ``fork``, ``exec``, ``exit``, ``signal`` or ``gone``."""
    return "exec" if isinstance(event, ProcessExec) else event.reason.value


def command_line(process: Process) -> str | None:
    """The arguments, quoted so that a shell would split them again; None if there are none."""
    return shlex.join(process.args) if process.args else None


def time_of(event: Event) -> datetime.datetime:
    """When the event was observed, UTC."""
    return utc(event.occasion.time_ns)


def utc(time_ns: int) -> datetime.datetime:
    """A timezone-aware datetime of UTC nanoseconds since the epoch."""
    return datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.timezone.utc)


def guest_ns(event: Event) -> int:
    """When an event was seen, UTC ns by the clock that `Process.start_ns` is by: the guest's.

    By the observer's where the guest's is not known.
    """
    process, boottime = process_of(event), event.occasion.boottime
    if process.start_ns is None or boottime is None:
        return event.occasion.time_ns
    return process.start_ns + max(boottime - process.identity.start, 0)


def lifetime_ns(event: Event) -> int | None:
    """For how long a process that has died has been there, all its images, by the guest's boot clock."""
    if not died(event) or event.occasion.boottime is None:
        return None
    return max(event.occasion.boottime - process_of(event).identity.start, 0)


def died(event: Event) -> bool:
    """Whether a process ended, and not an image alone."""
    return isinstance(event, ProcessEnd) and event.reason is not EndReason.EXEC


def outcome(event: Event) -> str | None:
    """How a process ended: ``0``, ``3``, ``SIGKILL``, ``SIGSEGV (core)``; None if it did not, or unknown."""
    status = event.status if isinstance(event, ProcessEnd) else None
    if status is None:
        return None
    if status.signal is None:
        return str(status.code)
    return signal_name(status.signal) + (" (core)" if status.core else "")


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; ``SIG40`` for a signal without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _text(event: Event) -> str | None:
    process = process_of(event)
    return command_line(process) or (f"[{process.comm}]" if process.kernel else process.exe)


COLUMNS = (
    Column("Time", 12, time_of),
    Column("Event", 5, action),
    Column("Reason", 7, reason),
    Column("PID", 7, lambda event: process_of(event).pid, right=True),
    Column("PPID", 7, lambda event: process_of(event).ppid, right=True),
    Column("UID", 6, lambda event: process_of(event).uid, right=True),
    Column("COMM", 15, lambda event: process_of(event).comm),
    Column("Exit", 14, outcome),
    Column("ARGS", 0, _text),
)
