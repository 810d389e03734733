"""One run: a guest, a mode, workloads; what `pse watch --json` showed against what the guest recorded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from live.hypervisors.qemu.plugin import build
from tests.accuracy.compare import Score, compare
from tests.guest import Guest, GuestSpec
from tests.guest.truth import TruthFork
from tests.watch import Watch

SETTLE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``score`` of one run; ``missed`` as `pse watch` printed it; ``processes`` that the guest recorded."""

    score: Score
    missed: int
    processes: int
    seconds: float
    errors: str


@contextmanager
def trappable(spec: GuestSpec) -> Iterator[Guest]:
    """A guest of that spec, started with the trap plugin."""
    with tempfile.TemporaryDirectory(prefix="pse-") as directory:
        argument = build.argument(Path(directory) / "trap.sock")
        options = {name: getattr(spec, name) for name in GuestSpec.__dataclass_fields__}
        with Guest(GuestSpec(**{**options, "plugins": (argument,)})) as guest:
            yield guest


def measure(
    guest: Guest,
    mode: str,
    commands: Iterable[Sequence[str] | str],
    *,
    interval_ms: float = 10,
    timeout: float = 600,
    buffer_kib: int = 8192,
) -> Outcome:
    """Watch while the commands run in the guest, one after another."""
    began = time.monotonic()
    options = ("--mode", mode, "--interval", str(interval_ms), "--kernel-threads")
    with Watch(str(guest.monitor), *options) as watch, guest.truth(buffer_kib=buffer_kib) as recorder:
        for command in commands:
            guest.start(command if isinstance(command, str) else list(command)).wait(timeout, check=False)
        time.sleep(SETTLE_S)
    truth = recorder.truth
    return Outcome(
        score=compare(truth, watch.documents),
        missed=watch.missed,
        processes=sum(isinstance(event, TruthFork) and event.pid == event.tgid for event in truth.events),
        seconds=time.monotonic() - began,
        errors=watch.errors,
    )
