"""Makes a guest stand still through its monitor, and sees to it that it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from live.core.errors import PseError, TargetError
from live.hypervisors.qemu.monitor.client import Monitor
from live.hypervisors.qemu.monitor.watchdog import Watchdog


class Pause:
    """Pauses of one guest, one at a time.  A guest that somebody else has paused is left alone.

    A watchdog process (`watchdog_process`), which is started with the first pause, lets the guest go on if we
    are killed within one.

    Wart: whether it runs is asked for before it is stopped.  Who pauses it in the fraction of a millisecond
    between the two has it go on with us.
    """

    def __init__(self, monitor: Monitor) -> None:
        """Nothing is stopped or started.  The monitor stays the caller's."""
        self._monitor = monitor
        self._watchdog: Watchdog | None = None
        self._standing = self._lost = False

    @contextlib.contextmanager
    def standing(self, limit: float | None = None) -> Iterator[bool]:
        """The guest stands still within; True if it did not before.

        Beyond ``limit`` seconds, if we hang, the watchdog lets it go, and this cannot be used any more; None:
        as long as it takes.  Raises `TargetError` (QEMU does not answer, or the guest was let go) and
        `GuestGone`.
        """
        if self._monitor.status() != "running":
            yield False
            return
        if self._watchdog is None and not self._lost:
            self._watchdog = Watchdog(self._monitor, self._monitor.protocol)
        if self._watchdog is None or self._watchdog.taken():
            raise TargetError("A pause lasted far too long and the guest was let go; attach again.")
        self._standing = True
        self._watchdog.stopped(limit)
        try:
            self._monitor.hmp("stop")
            yield True
        finally:
            # If `stop` was not answered in time it takes effect later: `cont` is behind it, all the same.
            self._go_on()

    def _go_on(self) -> None:
        watchdog = self._watchdog
        if watchdog is not None and watchdog.taken():
            # What was said to a gdb stub since may have stopped the guest once more.
            self._watchdog, self._lost = None, True
            watchdog.dismiss()
            self._monitor.hmp("cont")
        elif watchdog is not None:
            self._monitor.hmp("cont")
            watchdog.running()
        self._standing = False

    def close(self) -> None:
        """End the watchdog; the guest goes on if it still stands.  Safe to call twice."""
        if self._standing:
            with contextlib.suppress(PseError):
                self._go_on()
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.dismiss()
