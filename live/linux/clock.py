"""The guest's clocks, from the kernel's core `struct timekeeper` (kernel/time/timekeeping.c).

The kernel brings it up to date once per timer tick, and when a CPU wakes from idle.  What it says is
therefore never ahead of the clock that a process in the guest reads, and up to a tick behind; while all CPUs
are idle, for as long as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from live.core.errors import MemoryFault, SymbolsMissing
from live.linux.kernel import LinuxKernel
from live.linux.layout import field

_NS = 1_000_000_000
_WORD = 8
"""Alignment of a structure with 64-bit members."""
_TRIES = 4
_MEMBERS = (
    field("xtime_sec"),
    field("tkr_mono.xtime_nsec"),
    field("tkr_mono.shift"),
    field("tkr_mono.base", default=0),
    field("offs_real"),
    field("offs_boot"),
)


class Clocks(NamedTuple):
    """The guest's clocks at one moment.

    ``wall_ns``: UTC ns since the epoch.  ``boot_ns``: ns since the boot, suspended time included.
    ``epoch_ns``: UTC ns at which the boot clock was 0; it changes when somebody sets the wall clock.
    """

    wall_ns: int
    boot_ns: int
    epoch_ns: int


class KernelClock:
    """Reads the clocks of one kernel."""

    def __init__(self, kernel: LinuxKernel) -> None:
        """Find the `timekeeper`; a kernel in which it is not found has no clocks."""
        self._memory = kernel.memory
        # From 6.17 tk_core is a macro for the first element of timekeeper_data[].
        self._core = kernel.symbol("tk_core", "timekeeper_data")
        try:
            self._read = kernel.unpacker("timekeeper", _MEMBERS)
            self._inside = _place(kernel)
        except SymbolsMissing:
            self._core = None

    def read(self) -> Clocks | None:
        """The clocks now; None if they cannot be read, or the kernel is setting them at this very moment."""
        if self._core is None:
            return None
        try:
            for _ in range(_TRIES):
                # A seqcount: odd, or another one, while the kernel writes.
                before = self._memory.read(self._core, 4)
                seconds, fraction, shift, base, real, boot = self._read(self._core + self._inside)
                if not before[0] & 1 and self._memory.read(self._core, 4) == before:
                    fraction >>= min(shift, 63)
                    return Clocks(seconds * _NS + fraction % _NS, base + fraction + boot, real - boot)
        except MemoryFault:
            pass
        return None


def _place(kernel: LinuxKernel) -> int:
    """Offset of the `timekeeper` in `tk_core`: behind a seqcount, which PREEMPT_RT and lockdep make larger.

    Raises `SymbolsMissing`.
    """
    symbols = kernel.symbols
    known = symbols.inside("tk_core", "timekeeper") or symbols.member("tk_data", "timekeeper")
    if known is not None:
        return known.offset
    # A table without the type of tk_core.  seqcount_raw_spinlock: since 5.9.
    for lock in ("seqcount_raw_spinlock", "seqcount"):
        if symbols.has_type(lock):
            return -(-symbols.size(lock) // _WORD) * _WORD
    raise SymbolsMissing(f"the symbol table {symbols.path.name} has no seqcount")
