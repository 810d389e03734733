"""Poll mode: which part of the processes it sees, by how long they live, and whether it counts the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.accuracy.campaign import quiet
from tests.guest import Guest, GuestSpec
from tests.guest.truth import TruthFork
from tests.watch import Watch

INTERVALS_MS = (1, 10, 100)
LIFETIMES_MS = (1, 3, 10, 30, 100, 300)
"""Upper bounds of the classes; the last class has none."""
_SLEEPS = (0.002, 0.005, 0.02, 0.05, 0.2, 0.4)


def lifetime_class(ns: int) -> str:
    """The class of a lifetime."""
    low = 0
    for high in LIFETIMES_MS:
        if ns < high * 1_000_000:
            return f"{low}-{high} ms" if low else f"< {high} ms"
        low = high
    return f"> {low} ms"


CLASSES = [lifetime_class((ms * 1_000_000) - 1) for ms in LIFETIMES_MS] + [f"> {LIFETIMES_MS[-1]} ms"]


@dataclass(slots=True, kw_only=True)
class Recall:
    """``classes``: lifetime -> (processes, seen).  ``missed``: tasks, as it said; ``really``: as recorded."""

    kernel: str
    interval_ms: int
    classes: dict[str, list[int]]
    missed: int
    really: int
    false: int

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def commands(n: int) -> list[Sequence[str]]:
    """``n`` processes of about each lifetime."""
    naps = [["sh", "-c", f"for i in $(seq {n}); do sleep {nap}; done"] for nap in _SLEEPS]
    return [["fork-exit", str(2 * n)], ["brief", str(n)], ["fork-exec", str(n)], *naps]


def measure_recall(guest: Guest, interval_ms: int, n: int) -> Recall:
    """Watch in poll mode while short-lived processes run."""
    options = ("--mode", "poll", "--interval", str(interval_ms), "--kernel-threads")
    with guest.truth(buffer_kib=16384) as recorder, Watch(str(guest.monitor), *options) as watch:
        running = {_identity(d) for d in watch.documents}
        for command in commands(n):
            guest.start(list(command)).wait(600)
        quiet(watch)
        time.sleep(interval_ms / 1000)
    truth = recorder.truth
    created = {(e.pid, e.start) for e in truth.events if isinstance(e, TruthFork)} - running
    seen = {_identity(d) for d in watch.documents} - running
    classes = {name: [0, 0] for name in CLASSES}
    for process in truth.processes():
        if process.forked is not None and process.ended is not None:
            counts = classes[lifetime_class(process.ended.ts - process.forked.ts)]
            counts[0] += 1
            counts[1] += (process.tgid, process.start) in seen
    return Recall(
        kernel=guest.spec.kernel,
        interval_ms=interval_ms,
        classes=classes,
        missed=watch.missed,
        really=len(created - seen),
        false=len(seen - created),
    )


def _identity(document: Any) -> tuple[int, int]:
    return document["process"]["pid"], document["pse"]["start_boottime"]


def run(kernel: str, n: int) -> list[Recall]:
    """One guest, each interval."""
    with Guest(GuestSpec(kernel=kernel)) as guest:
        return [measure_recall(guest, interval, n) for interval in INTERVALS_MS]
