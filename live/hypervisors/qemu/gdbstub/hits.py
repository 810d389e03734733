"""Which vCPUs of a stopped guest have hit what is armed.  Pure: addresses in, answers out.

Theory of operation
-------------------
QEMU stops every vCPU when one hits, and names one.  Another vCPU may have hit on its way to the stop:

* at a breakpoint it stands before the instruction, and hits again when the guest runs: nothing to be done;
* at a watchpoint it stands behind the access, which is done.  What QEMU keeps of it is a mark
  (``watchpoint_hit``) with which that vCPU stops once more at some later access, wherever that is, and
  meanwhile it reports no other.  Where it stands says it all: behind an access that is known, it has hit.
  The mark has to go; a step of that vCPU alone takes it away.

A vCPU that has not moved since its hit was taken stands there too, and is found once more.  It has no mark,
and its step would cost the guest its translations.  All its registers are the same then; but so they may be
in a loop that forks or execs.  What tells the two apart is whether the trap is news to the reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from live.core.traps import Watchpoint


@dataclass(frozen=True, slots=True)
class Hit:
    """A vCPU that has hit; ``thread`` as the stub counts them, from 1."""

    thread: int
    registers: Mapping[str, int]
    word: int | None = None
    """What it has touched; None: it is at a breakpoint."""
    same: bool = False
    """It is as it was when it last hit, register by register, and QEMU does not report it."""

    @property
    def pc(self) -> int:
        """Where it stands."""
        return self.registers.get("rip", 0)


class Places:
    """The words that are watched, by the addresses behind the accesses to them."""

    def __init__(self, watchpoints: Iterable[Watchpoint] = ()) -> None:
        """Nothing is read from ``watchpoints`` later."""
        watchpoints = frozenset(watchpoints)
        self.watchpoints = watchpoints
        self.words = frozenset(one.word for one in watchpoints)
        self._behind: dict[int, int] = {pc: one.word for one in watchpoints for pc in one.behind}
        self._known = self._behind.keys() | {pc for one in watchpoints for pc in one.others}

    def word(self, pc: int) -> int | None:
        """The word that a vCPU at ``pc`` has touched, if that is a trap."""
        return self._behind.get(pc)

    def touched(self, pc: int) -> bool:
        """Whether a vCPU at ``pc`` has touched a word, trap or not."""
        return pc in self._known
