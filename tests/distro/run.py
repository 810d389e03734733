"""One run: boot, watch from as early as it goes, make it work, and compare."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from live.hypervisors.qemu.plugin import build
from live.watch.watchers import PROOF_S
from tests.accuracy.campaign import broken_invariants, quiet
from tests.accuracy.compare import Score, compare
from tests.distro import calls, fields, looks, workload
from tests.distro.guest import Distro, spec
from tests.guest.truth import Truth, TruthExec, TruthFork
from tests.watch import Watch

_BUFFER_KIB = 32768


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one run has shown."""

    kernel: str
    qemu: str
    cpus: int
    mode: str
    score: Score
    fields: fields.Fields
    boots: dict[str, fields.Count]
    """Of what all events of a boot have alike; over the whole stream."""
    processes: int
    looks: int
    held: int
    lost: int
    """How often the looks' own queue overflowed: fewer looks, no wrong ones."""
    state: str
    """As systemd says it."""
    failed: list[str]
    """Units, and steps of the workload, that failed: then less was compared than should be."""
    attempts: list[str]
    """What `pse watch` said when it was too early."""
    invariants: list[str]
    missed: int
    summary: str
    seconds: dict[str, float] = field(default_factory=dict)


class _Early:
    """Begins to watch as soon as it can be done, while the guest boots."""

    def __init__(self, monitor: Path, *options: str) -> None:
        self.attempts: list[str] = []
        self._arguments = (str(monitor), *options)
        self._stop = threading.Event()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._try, daemon=True)
        self._thread.start()

    def _try(self) -> None:
        while not self._stop.is_set() and self._watch is None:
            try:
                self._watch = Watch(*self._arguments).__enter__()
            except AssertionError as error:
                self.attempts.append(str(error).removeprefix("pse showed nothing: ").strip())

    @contextlib.contextmanager
    def watching(self, timeout: float = 120) -> Iterator[Watch]:
        """Wait until it does, and end it at last."""
        self._thread.join(timeout)
        if self._watch is None:
            raise AssertionError(f"pse watch did not begin: {self.attempts[-1:]}")
        with contextlib.ExitStack() as stack:
            stack.push(self._watch)
            yield self._watch

    def stop(self) -> None:
        """No further attempt."""
        self._stop.set()
        self._thread.join(60)


class _Laps:
    """What took how long."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say
        self._last = time.monotonic()

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
        self._say(f"{name}: {self.seconds[name]:.0f} s")


def run(
    kernel: str,
    *,
    cpus: int = 1,
    mode: str = "plugin",
    short: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Do it all."""
    laps = _Laps(say)
    with tempfile.TemporaryDirectory(prefix="pse-") as directory:
        plugins = (build.argument(Path(directory) / "trap.sock"),) if mode in ("plugin", "asid") else ()
        guest = Distro(spec(cpus=cpus, plugins=plugins), kernel)
        laps.end("fetch")
        with contextlib.closing(guest):
            guest.launch()
            early = _Early(guest.monitor, "--mode", mode, "--kernel-threads")
            try:
                guest.wait_ready()
                with early.watching() as watch:
                    first = len(watch.documents)
                    guest.prepare()
                    laps.end("initramfs")
                    with guest.truth(events=calls.EVENTS, buffer_kib=_BUFFER_KIB) as recorder:
                        first = len(watch.documents)
                        state = guest.boot()
                        booted = len(watch.documents)
                        laps.end("boot")
                        failed = [*guest.failed_units, *_work(guest, laps, short=short)]
                        quiet(watch)
                        last = len(watch.documents)
                    boot_id, hostname = guest.inside(
                        "cat /proc/sys/kernel/random/boot_id; uname -n"
                    ).output.split()
                    written = guest.looks()
                    time.sleep(PROOF_S + 1)  # the last proof by the kernel's counters
                    laps.end("records")
            finally:
                early.stop()
    found, lost = looks.parse(written)
    # The names of programs say nothing here: /bin has no links to busybox.
    events = tuple(replace(e, filename="") if isinstance(e, TruthExec) else e for e in recorder.truth.events)
    truth, part = Truth(events=events), watch.documents[first:last]
    outcome = Outcome(
        kernel=guest.kernel.release,
        qemu=guest.emulator.version,
        cpus=cpus,
        mode=mode,
        score=compare(truth, part),
        fields=fields.compare(truth, found, part),
        boots=fields.of_boot(watch.documents, booted, boot_id, hostname),
        processes=sum(isinstance(e, TruthFork) and e.pid == e.tgid for e in events),
        looks=len(found),
        held=sum(look.held for look in found),
        lost=lost,
        state=state,
        failed=failed,
        attempts=early.attempts,
        invariants=broken_invariants(watch.documents),
        missed=watch.missed,
        summary=watch.errors.splitlines()[-1],
        seconds=laps.seconds,
    )
    laps.end("compare")
    return outcome


def _work(guest: Distro, laps: _Laps, *, short: bool) -> Iterator[str]:
    """Do the steps; what failed."""
    for step in workload.steps(short=short):
        start = guest.unit if step.unit else guest.inside
        result = start(step.command, timeout=step.timeout, check=False)
        if result.status:
            yield f"step {step.name} ended with {result.code}: {result.output[-400:].strip()}"
        laps.end(step.name)
