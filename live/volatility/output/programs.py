"""``--dump``: the program that an event starts, out of memory."""

from __future__ import annotations

from typing import Any

from volatility3.framework import renderers

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Event, ProcessEnd
from live.linux.program import program_of
from live.output.columns import process_of


def of_event(source: object, event: Event) -> Any:
    """The `Program` that an event starts, or what a row has instead: most events start none."""
    process = process_of(event)
    if isinstance(event, ProcessEnd) or process.kernel:
        return renderers.NotApplicableValue()
    kernel = getattr(source, "kernel", None)
    if kernel is None:  # a recording has only what was looked at
        return renderers.NotAvailableValue()
    try:
        return program_of(kernel, process)
    except (MemoryFault, SymbolsMissing):
        return renderers.UnreadableValue()
