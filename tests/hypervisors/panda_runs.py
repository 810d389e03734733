"""A fake PANDA that runs, for tests: its `run` is on a thread where a user's is on the main one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from live.arch.x86_64 import X86_64
from live.core.traps import AsidChange, Syscall, TrapSource
from live.hypervisors.panda import PandaGuest
from tests.hypervisors.panda_fake import FakePanda

KINDS: frozenset[type] = frozenset({AsidChange, Syscall})
PATIENCE = 5.0


class Running:
    """``with Running(panda):`` the machine runs within."""

    def __init__(self, panda: FakePanda) -> None:
        self.panda = panda
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.panda.run()
        except BaseException as error:  # looked at by the test
            self.error = error

    def start(self) -> None:
        self._thread.start()
        assert self.panda.running.wait(PATIENCE)

    def end(self) -> None:
        self.panda.end_analysis()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "panda.run() does not return"

    def __enter__(self) -> FakePanda:
        self.start()
        return self.panda

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.end()


@contextlib.contextmanager
def opened(panda: FakePanda, hold: float = PATIENCE) -> Iterator[tuple[PandaGuest, TrapSource]]:
    """A guest made before the run, and a source of its traps."""
    guest = PandaGuest(panda)
    with Running(panda):
        source = guest.open(X86_64, KINDS, hold)
        try:
            yield guest, source
        finally:
            source.close()
            guest.close()
