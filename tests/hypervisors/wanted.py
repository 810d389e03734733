"""What a request lets through, as `live.core.traps.TrapRequest` says it: for the fakes, which are sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from live.core.machine import Architecture
from live.core.memory import Asid, GuestPhysical
from live.core.traps import Abi, Access, Action, AsidChange, CodeHit, Syscall, Trap, TrapRequest


def told(
    request: TrapRequest, trap: Trap, machine: Architecture, moved: Callable[[], tuple[GuestPhysical, ...]]
) -> Trap | None:
    """What happened, as it is reported; None if the asid stays what it is.

    ``trap`` has roots of page tables where asids are to be.  ``moved``: compares the words, and says which
    have moved; asked at each asid change.
    """
    split = request.split_asids
    trap = replace(trap, asid=machine.asid_of(trap.asid, split=split))
    if not isinstance(trap, AsidChange):
        return trap
    new_asid = machine.asid_of(trap.new_asid, split=split)
    if new_asid == trap.asid:
        return None
    words = moved()
    return replace(trap, new_asid=new_asid, moved=bool(words), words=words)


def action_of(request: TrapRequest, trap: Trap, machine: Architecture) -> Action:
    """What is done with a trap that was `told`."""
    if isinstance(trap, CodeHit):
        return request.code_action if trap.pc in request.code else Action.OFF
    if isinstance(trap, Access):
        armed = any(trap.address == one.word and trap.pc in one.behind for one in request.accesses)
        return Action.HOLD if armed else Action.OFF
    if isinstance(trap, Syscall):
        listed = request.syscall_action if _listed(request, trap, machine) else Action.OFF
        return max(request.every_syscall, listed, _unsettled(request, trap.asid, request.unsettled_syscalls))
    if trap.moved:
        return Action.HOLD
    return max(request.asid_changes, _unsettled(request, trap.new_asid, request.unsettled_asids))


def _unsettled(request: TrapRequest, asid: Asid, action: Action) -> Action:
    return Action.OFF if asid in request.settled and asid not in request.pending else action


def _listed(request: TrapRequest, call: Syscall, machine: Architecture) -> bool:
    if call.number not in (request.compat_syscalls if call.abi is Abi.COMPAT else request.syscalls):
        return False
    flags = [one.bits for one in request.call_flags if (one.number, one.abi) == (call.number, call.abi)]
    return not flags or any(machine.call_argument(call.registers, call.abi, 0) & bits for bits in flags)
