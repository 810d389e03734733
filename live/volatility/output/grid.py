"""The columns of `linux.pse`, with the types and names that Volatility's own plugins (pslist, psaux) use.

A value that could not be read is `UnreadableValue`, an unknown one `NotAvailableValue`, one that makes no
sense for the row `NotApplicableValue`; never "" or 0.  Text from the guest is escaped here, because
Volatility's text renderers print it as it is.
"""

from __future__ import annotations

import bisect
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from volatility3.framework import renderers
from volatility3.framework.renderers import format_hints

from live.core.events import EndReason, Event, Process, ProcessEnd
from live.core.text import printable
from live.output.columns import action, command_line, guest_ns, outcome, process_of, reason, utc


class Column(NamedTuple):
    """A column: ``title`` and ``kind`` (its type) for the TreeGrid, ``value`` of an event."""

    title: str
    kind: type
    value: Callable[[Event], Any]


def _of(read: Callable[[Process], Any], absent: type = renderers.UnreadableValue) -> Callable[[Event], Any]:
    """The value of a column about the process; ``absent`` replaces None."""

    def value(event: Event) -> Any:
        found = read(process_of(event))
        return absent() if found is None else found

    return value


def _user(read: Callable[[Process], str | None]) -> Callable[[Event], Any]:
    """The value of a text column that is not applicable to kernel threads."""

    def value(event: Event) -> Any:
        process = process_of(event)
        if process.kernel:
            return renderers.NotApplicableValue()
        found = read(process)
        return renderers.UnreadableValue() if found is None else printable(found)

    return value


def _exit(event: Event) -> Any:
    if not isinstance(event, ProcessEnd) or event.reason is EndReason.EXEC:
        return renderers.NotApplicableValue()
    return outcome(event) or renderers.NotAvailableValue()


def _args(process: Process) -> str | None:
    # A process may have no arguments; that is no read error.
    return "" if process.args == () else command_line(process)


def _time(time_ns: int | None) -> Any:
    if not time_ns:
        return renderers.NotAvailableValue()
    try:
        return utc(time_ns)
    except (OverflowError, ValueError, OSError):  # the guest's clock may have any value
        return renderers.UnreadableValue()


def _hex(value: int | None) -> format_hints.Hex | None:
    return None if value is None else format_hints.Hex(value)


def _asid(event: Event) -> Any:
    process = process_of(event)
    if process.asid is not None:
        return format_hints.Hex(process.asid)
    return renderers.NotApplicableValue() if process.kernel else renderers.NotAvailableValue()


def _ppid(event: Event) -> Any:
    process = process_of(event)
    if process.ppid == 0 and process.pid > 2:
        return renderers.UnreadableValue()
    return process.ppid


COLUMNS = (
    Column("EVENT", str, action),
    Column("TIME", datetime.datetime, lambda event: _time(event.occasion.time_ns)),
    Column("PID", int, _of(lambda process: process.pid)),
    # The leader's tid is the tgid, also after an exec from another thread (de_thread).
    Column("TID", int, _of(lambda process: process.pid)),
    # Only the first two tasks have pid 0 as parent; the parent of a freed task is unknown.
    Column("PPID", int, _ppid),
    Column("COMM", str, _of(lambda process: printable(process.comm))),
    Column("REASON", str, reason),
    Column("EXIT", str, _exit),
    Column("ARGS", str, _user(_args)),
    Column("EXE", str, _user(lambda process: process.exe)),
    Column("UID", int, _of(lambda process: process.uid)),
    Column("GID", int, _of(lambda process: process.gid)),
    Column("EUID", int, _of(lambda process: process.euid)),
    Column("EGID", int, _of(lambda process: process.egid)),
    Column("CREATION TIME", datetime.datetime, lambda event: _time(process_of(event).start_ns)),
    Column("ASID", format_hints.Hex, _asid),
    Column("OFFSET (V)", format_hints.Hex, _of(lambda process: _hex(process.task))),
    Column("SEEN BY", str, lambda event: event.occasion.trigger),
)
_OUTPUT = ("File output", str)

Output = Callable[[Event], Any]
"""The value of the column ``File output``: a file name, or an absent value."""


def columns() -> list[tuple[str, type]]:
    """(title, type) of all columns, for the TreeGrid."""
    return [*((column.title, column.kind) for column in COLUMNS), _OUTPUT]


def no_output(event: Event) -> str:
    """The value that Volatility's plugins show without ``--dump``."""
    return "Disabled"


def row(event: Event, output: Output = no_output) -> tuple[Any, ...]:
    """The values of one event, in the order of `columns`."""
    return (*(column.value(event) for column in COLUMNS), output(event))


def flat(events: Iterable[Event], output: Output = no_output) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(0, values): one row per event, in order."""
    for event in events:
        yield 0, row(event, output)


def tree(events: Iterable[Event], output: Output = no_output) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(depth, values): each row below the start of its parent, siblings in order.  Needs all events at once.

    Pids are reused: the parent's start is the last one before the row, or else the first one after it.  Every
    row appears once, even if the parents form a cycle.
    """
    made = [(event, row(event, output)) for event in events]
    rows = [event for event, _ in made]
    starts: dict[int, list[int]] = {}
    for index, event in enumerate(rows):
        if action(event) == "start":
            starts.setdefault(process_of(event).pid, []).append(index)
    above: list[int | None] = []
    for index, event in enumerate(rows):
        process = process_of(event)
        found = starts.get(process.ppid, []) if process.ppid != process.pid else []
        at = bisect.bisect_left(found, index)
        above.append((found[at - 1] if at else found[0]) if found else None)
    below: dict[int | None, list[int]] = {}
    for index in range(len(rows)):
        if _circular(above, index):
            above[index] = None
        below.setdefault(above[index], []).append(index)
    stack = [(0, index) for index in reversed(below.get(None, []))]
    while stack:
        depth, index = stack.pop()
        yield depth, made[index][1]
        stack += [(depth + 1, child) for child in reversed(below.get(index, []))]


def _circular(above: list[int | None], index: int) -> bool:
    """Whether the parents of a row lead back to it."""
    at = above[index]
    for _ in above:
        if at is None:
            return False
        if at == index:
            return True
        at = above[at]
    return False  # a cycle further up, which is cut at one of its own rows


def timeline(events: Iterable[Event]) -> Iterator[tuple[str, str, datetime.datetime]]:
    """(description, ``created``, ``changed`` or ``modified``, time) of each event whose time is known."""
    for event in events:
        process = process_of(event)
        kind = action(event)
        known = _time(process.start_ns if kind == "start" else guest_ns(event))
        if not isinstance(known, datetime.datetime):
            continue
        text = f"Process {process.pid} {printable(process.comm)} ({process.task:#x})"
        if kind == "start":
            yield f"{text} started", "created", known
        elif kind == "exec":
            yield f"{text} executes {printable(command_line(process) or '')}", "changed", known
        elif event.occasion.trigger in ("zombie", "freed memory"):
            yield f"{text} ended before: {outcome(event)}", "modified", known
        else:
            yield f"{text} ended: {outcome(event) or reason(event)}", "modified", known
