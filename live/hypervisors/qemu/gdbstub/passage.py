"""How a vCPU gets past the instruction under its breakpoint.  Pure.

The instruction has to be passed once without the breakpoint:

* most kernel functions begin with a no-op: it is skipped by setting the program counter behind it, in the
  same message that lets the guest run.  Nothing is removed, or missed.
* otherwise that vCPU alone is stepped (``vCont;s``) while the others stand, so that they miss nothing
  either.  TCG steps over a breakpoint as if it were not there; elsewhere it is removed before and set again
  after the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from live.core.machine import Architecture
from live.hypervisors.qemu.gdbstub.armed import Armed
from live.hypervisors.qemu.gdbstub.hits import Hit
from live.hypervisors.qemu.gdbstub.target import RegisterFile


@dataclass(frozen=True, slots=True)
class Skip:
    """Requests that set the program counter behind a no-op."""

    requests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StepOver:
    """A step of one vCPU, with requests before and after it."""

    thread: int
    before: tuple[bytes, ...] = ()
    after: tuple[bytes, ...] = ()


class Passage:
    """Ways past breakpoints; ``remove_to_step``: a step would hit the breakpoint."""

    def __init__(
        self, machine: Architecture, registers: RegisterFile, armed: Armed, *, remove_to_step: bool
    ) -> None:
        """Nothing is asked."""
        self._machine, self._registers, self._armed = machine, registers, armed
        self._remove_to_step = remove_to_step

    def ask(self, hit: Hit) -> bytes | None:
        """The request for the code where the vCPU stands; None: it has nothing to pass."""
        if hit.word is not None or not self._armed.code(hit.pc):
            return None
        return b"m%x,%x" % (hit.pc, self._machine.longest_no_op)

    def past(self, hit: Hit, answer: bytes) -> Skip | StepOver:
        """The way past, from the answer to `ask`."""
        code = b""
        if answer[:1] != b"E":
            # Memory may have the breakpoint's own instruction in place of the first byte.
            code = self._armed.first_byte(hit.pc) + bytes.fromhex(answer.decode())[1:]
        length = self._machine.no_op_length(code)
        if length:
            return Skip((b"Hg%x" % hit.thread, self._registers.set_pc(hit.pc + length)))
        if not self._remove_to_step:
            return StepOver(hit.thread)
        return StepOver(hit.thread, (self._armed.removed(hit.pc),), (self._armed.restored(hit.pc),))
