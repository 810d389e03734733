"""Which vCPUs of a stopped guest have hit what is armed.  Pure: requests out, answers in.

Theory of operation
-------------------
QEMU stops every vCPU when one hits, and names one.  Another vCPU may have hit on its way to the stop:

* at a breakpoint it stands before the instruction, and hits again when the guest runs: nothing to be done;
* at a watchpoint it stands behind the access, which is done.  What QEMU keeps of it is a mark
  (``watchpoint_hit``) with which that vCPU stops once more at some later access, wherever that is, and
  meanwhile it reports no other.  Where it stands says it all: behind an access that is known, it has hit.
  The mark has to go; a step of that vCPU alone takes it away.

So at each stop two questions are asked at most: first for all registers of the vCPU that was named and where
the others stand, then for all registers of those others that stand behind an access.  A step makes QEMU
forget the mark.

A vCPU that has not moved since its hit was taken stands there too, and is found once more.  It has no mark,
and its step would cost the guest its translations.  All its registers are the same then; but so they may be
in a loop that forks or execs.  What tells the two apart is whether the trap is news to the reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from live.core.machine import Architecture
from live.core.memory import GuestVirtual
from live.hypervisors.qemu.gdbstub.armed import Armed
from live.hypervisors.qemu.gdbstub.target import RegisterFile, number_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A vCPU that has hit."""

    thread: int
    """As the stub counts them, from 1."""
    registers: Mapping[str, int]
    """Those of `Architecture.trap_registers` that the stub has."""
    pc: int
    """The guest-virtual address at which it stands."""
    root: int
    """`Architecture.page_root`, raw."""
    word: GuestVirtual | None = None
    """What it has touched; None: it is at a breakpoint."""
    same: bool = False
    """It is as it was when it last hit, register by register, and QEMU does not report it."""


@dataclass(frozen=True, slots=True)
class Where:
    """The first question of a stop."""

    reported: int
    """The thread that QEMU has named, whose registers are asked for; 0: none."""
    others: tuple[int, ...]
    """Threads of which it is asked where they stand."""


@dataclass(frozen=True, slots=True)
class Who:
    """The second question: the registers of threads that stand behind an access."""

    threads: tuple[int, ...]


Question = Where | Who


class HitFinder:
    """Finds at each stop who has hit; remembers of each vCPU how it was when it last hit, and whether it has
    a mark.
    """

    def __init__(
        self, machine: Architecture, registers: RegisterFile, armed: Armed, threads: Sequence[int]
    ) -> None:
        """``threads``: all vCPUs, as the stub counts them."""
        self._machine, self._registers, self._armed = machine, registers, armed
        self._threads = tuple(threads)
        self._marked: set[int] = set()
        """Threads on which QEMU may still keep the mark of a hit that it has not reported."""
        self._last: dict[int, bytes] = {}
        """Thread -> all its registers when it last hit, as the stub sent them."""

    def first(self, reported: int) -> Question | None:
        """What to ask in a stop of which QEMU has named the thread ``reported`` (0: none); None: nothing."""
        watching = bool(self._armed.places.words)
        others = tuple(thread for thread in self._threads if watching and thread != reported)
        return Where(reported, others) if reported or others else None

    def requests(self, question: Question) -> tuple[bytes, ...]:
        """Two for each thread."""
        if isinstance(question, Who):
            return tuple(part for thread in question.threads for part in (_select(thread), b"g"))
        reported = (_select(question.reported), b"g") if question.reported else ()
        pc = self._registers.ask_pc()
        return (*reported, *(part for thread in question.others for part in (_select(thread), pc)))

    def answered(self, question: Question, answers: Sequence[bytes]) -> tuple[list[Hit], Question | None]:
        """Who has hit, and what else to ask."""
        values = list(answers[1::2])
        if isinstance(question, Who):
            return self._unreported(question.threads, values), None
        hits = self._reported(question.reported, values.pop(0)) if question.reported else []
        touched = self._armed.places.touched
        pairs = zip(question.others, values, strict=True)
        found = tuple(thread for thread, answer in pairs if touched(number_of(answer)))
        return hits, Who(found) if found else None

    def _reported(self, thread: int, answer: bytes) -> list[Hit]:
        self._last[thread] = answer
        self._marked.discard(thread)
        hit = self._hit(thread)
        return [hit] if hit.word is not None or self._armed.code(hit.pc) else []

    def _unreported(self, threads: Sequence[int], answers: Sequence[bytes]) -> list[Hit]:
        """Those of the threads that have hit, or have not moved since they were last found to have."""
        hits = []
        for thread, answer in zip(threads, answers, strict=True):
            same = self._last.get(thread) == answer
            self._last[thread] = answer
            hit = self._hit(thread, same=same)
            if hit.word is not None or not same:
                self._marked.add(thread)
            if hit.word is not None:
                hits.append(hit)
        return hits

    def _hit(self, thread: int, *, same: bool = False) -> Hit:
        registers = self._registers.decode(self._last[thread])
        pc = registers.pop(self._machine.pc, 0)
        root = registers.pop(self._machine.page_root, 0)
        word = self._armed.places.word(pc)
        return Hit(thread=thread, registers=registers, pc=pc, root=root, word=word, same=same)

    def known(self, thread: int) -> None:
        """What the thread was found to have hit was reported before: it has no mark."""
        self._marked.discard(thread)

    def unmark(self) -> tuple[int, ...]:
        """The threads that have to be stepped for QEMU to forget; taken for done."""
        marked = tuple(sorted(self._marked))
        self._marked.clear()
        return marked


def _select(thread: int) -> bytes:
    """The request by which those that follow are about a thread."""
    return b"Hg%x" % thread
