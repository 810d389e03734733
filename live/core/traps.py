"""What comes in: traps, what one asks for, and the capabilities of a source of them.  Pure: no I/O here.

Theory of operation
-------------------
A *trap* is one moment at which a vCPU did something that may matter: it is about to execute a
system-call instruction, to load another page-table root, or the instruction at a code address.
Every trap but `Access` is taken **before** the instruction executes, so the guest's memory and registers are
those that the instruction will see.

A source filters next to the vCPU.  What passes is either *recorded* (the guest runs on, the trap is
seen later) or *held* (the vCPU waits until `TrapSource.resume`, not beyond the hold limit if its
reader hangs, so that memory can be read as it is at that moment).  Only that vCPU waits, where the
source can do it.

A held code address may have a *fence*: the guest runs on, and no vCPU gets past the beginning of its next
system call that is not in `Fence.passing`, or its next trapped code address, before `TrapSource.resume`.
So what only the kernel changes, on behalf of a system call or behind a trap, can be read meanwhile as if the
vCPU stood, and the guest hardly ever waits.

A request is a plain value and replaces the one before it.  It knows nothing of an operating
system: numbers, addresses and words only.

asids are compared and reported as `live.core.machine.Architecture.asid_of` makes them of the register.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType, Protocol

from live.core.memory import Asid, GuestPhysical, GuestVirtual

VcpuIndex = NewType("VcpuIndex", int)
"""Number of a vCPU as the hypervisor counts them, from 0."""


class Action(enum.IntEnum):
    """What a source does with something that passed its filters."""

    OFF = 0
    RECORD = 1
    """Note it and let the guest run on; a full ring drops it and counts the drop.  A source that cannot
    holds instead, and `Trap.held` says so."""
    HOLD = 2
    """The vCPU waits for `TrapSource.resume`; never dropped, unless a hold ran into its limit before."""


class Abi(enum.IntEnum):
    """By which table the number of a system call is meant."""

    NATIVE = 0
    """That of programs of the machine's own width."""
    COMPAT = 1
    """That of 32-bit programs on a 64-bit kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A naturally aligned word of guest memory that is compared at each asid change."""

    gpa: GuestPhysical
    size: int = 8
    """Bytes: 4 or 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchpoint:
    """An aligned 4-byte word of data, and the instructions whose access to it is a trap.

    What a kernel function reads tells that it runs.  The vCPU is held *behind* the instruction.
    """

    word: GuestVirtual
    behind: frozenset[GuestVirtual]
    """Addresses behind those instructions: there a vCPU stands then."""
    others: frozenset[GuestVirtual] = frozenset()
    """The same of accesses that are no trap: what is known is not taken for something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A code address at which the guest may run on, up to its next system call or trap.

    Only if the quadword at ``offset`` bytes from what the function's first argument points at can be read and
    is not 0; otherwise the vCPU is held.
    """

    code: GuestVirtual
    offset: int
    passing: frozenset[int] = frozenset()
    """Numbers (0..1023) of system calls, by `Abi.NATIVE`, that may be made all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFlags:
    """Of a listed system call only those are trapped whose first argument has one of the bits."""

    number: int
    abi: Abi
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrapRequest:
    """What to trap.  The empty request traps nothing, and costs nothing."""

    asid_changes: Action = Action.OFF
    """Every change of the asid on a vCPU."""
    syscalls: frozenset[int] = frozenset()
    """Numbers (0..1023) trapped in whatever asid, by `Abi.NATIVE`."""
    compat_syscalls: frozenset[int] = frozenset()
    """The same by `Abi.COMPAT`."""
    call_flags: frozenset[CallFlags] = frozenset()
    """What `syscalls` and `compat_syscalls` are narrowed to."""
    every_syscall: Action = Action.OFF
    """Every system call in every asid (for measuring; a guest makes a great many)."""
    syscall_action: Action = Action.HOLD
    """What is done for `syscalls`, `compat_syscalls`."""
    settled: frozenset[Asid] = frozenset()
    """Asids of which nothing more is to be learnt: the next two are for all others.  One that is not settled
    any more may be trapped on a vCPU from the next change to it on only; in `pending`, at once."""
    pending: frozenset[Asid] = frozenset()
    """Asids that are not settled, in which a vCPU may be now."""
    unsettled_asids: Action = Action.OFF
    """Every change to an asid that is not in `settled`."""
    unsettled_syscalls: Action = Action.OFF
    """Every system call in an asid that is not in `settled`."""
    split_asids: bool = True
    """As ``split`` of `live.core.machine.Architecture.asid_of`, by which asids are told apart."""
    words: tuple[Word, ...] = ()
    """Compared at each asid change, which is trapped and held if one has moved since the last one."""
    moved_fence: frozenset[int] | None = None
    """Not None: where a word has moved the vCPU need not stand, as at one of `fences` that these system calls
    (0..1023, by `Abi.NATIVE`) pass, and no asid change; a source that has no fences holds it there, too."""
    code: frozenset[GuestVirtual] = frozenset()
    """Code addresses, trapped and held before the instruction there executes."""
    code_action: Action = Action.HOLD
    fences: frozenset[Fence] = frozenset()
    """Where in `code` the vCPU need not stand; a source that has no fences holds it there, too."""
    entries: frozenset[tuple[GuestVirtual, Abi]] = frozenset()
    """Where the guest's kernel begins a system call, and by which table its number is meant.  There `fences`
    stop a vCPU; without entries there are none."""
    accesses: frozenset[Watchpoint] = frozenset()
    """Words of data, always held.  A vCPU that has not moved since may be reported once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    vcpu: VcpuIndex
    asid: Asid
    """The asid in force when the trap was taken."""
    pc: GuestVirtual
    """Address of the instruction that is about to execute."""
    sequence: int
    """Rises by at least one from trap to trap of one source; the order in which they happened."""
    time_ns: int
    """Host's monotonic clock when the trap was taken, in nanoseconds."""
    held: bool
    """The vCPU waits for `TrapSource.resume`; at a fence, not before its next system call or trap."""
    registers: Mapping[str, int]
    """Registers by name, unsigned: those of `Architecture.trap_registers` that the source has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsidChange(_Common):
    """A vCPU is about to load another page-table root, of another asid."""

    new_asid: Asid
    moved: bool = False
    """One of the requested words had moved since the last asid change on any vCPU."""
    words: tuple[GuestPhysical, ...] = ()
    """All that have moved; none where the source does not tell them, or they are too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Syscall(_Common):
    """A vCPU is about to enter a system call."""

    number: int
    abi: Abi = Abi.NATIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeHit(_Common):
    """A vCPU is about to execute the instruction at an armed code address (``pc``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access(_Common):
    """A vCPU has just touched ``address``, a word of `TrapRequest.accesses`.

    ``pc`` is *behind* that instruction, one of `Watchpoint.behind`.
    """

    address: GuestVirtual


Trap = AsidChange | Syscall | CodeHit | Access


@dataclass(frozen=True, slots=True, kw_only=True)
class TrapCounters:
    """What a source did so far; none of it is reset by `TrapSource.arm`."""

    delivered: int = 0
    dropped: int = 0
    """Recorded traps that found the ring full."""
    hold_timeouts: int = 0
    """Holds that were ended by the limit, not by `TrapSource.resume`."""
    held_ns: int = 0
    """For how long vCPUs waited for `TrapSource.resume`, in all."""


class TrapSource(Protocol):
    """Where traps come from.  One reader at a time; not thread-safe."""

    @property
    def mode(self) -> str:
        """What the output says, and what ``--mode`` selects."""

    @property
    def description(self) -> str:
        """One phrase for the output: which source, over what."""

    @property
    def guarantee(self) -> str:
        """One sentence for the output: what this mode can and cannot miss."""

    @property
    def counters(self) -> TrapCounters:
        """Delivered, dropped, timed out."""

    @property
    def supports(self) -> frozenset[type]:
        """Which of the `Trap` classes the source can deliver."""

    @property
    def holds_all(self) -> bool:
        """Whether the whole guest stands while a trap is held, not its vCPU alone."""

    @property
    def prefers(self) -> type:
        """Of `CodeHit` and `Access` the one that costs the guest less."""

    def arm(self, request: TrapRequest) -> None:
        """Replace what is trapped; in force when this returns.

        Raises `live.core.errors.TargetError` for what the source cannot do, `GuestGone`.
        """

    def wait(self, timeout: float | None) -> Trap | None:
        """The next trap in order, or None after ``timeout`` seconds (None: without end).

        Raises `GuestGone` when the hypervisor went away, and whenever it is asked after that.
        """

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        """Let the vCPU of a held trap go on; nothing for one that is not held (any more).

        ``news`` False: the reader learnt nothing from it, as from a vCPU that is reported once more.
        Raises `GuestGone`, or does nothing, if the guest has ended.
        """

    def close(self) -> None:
        """Let go of every vCPU, remove every trap, detach.  The guest goes on as if never watched."""
