"""``--dump``: the program that a process runs, rebuilt from memory."""

from __future__ import annotations

from typing import Any

from volatility3.framework import renderers

from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import Event, ProcessEnd
from live.linux.program import program_of
from live.output.columns import process_of
from live.volatility.output.sources import Source


def of_event(source: Source, event: Event) -> Any:
    """The `Program` of a start or exec event, else an absent value for the row."""
    process = process_of(event)
    if isinstance(event, ProcessEnd) or process.kernel:
        return renderers.NotApplicableValue()
    kernel = source.kernel
    if kernel is None:  # a recording: only the pages that were read exist
        return renderers.NotAvailableValue()
    try:
        return program_of(kernel, process)
    except (MemoryFault, SymbolsMissing):
        return renderers.UnreadableValue()
