"""What of a request passes.  Pure: values in, an action out.

What is meant by each member of a request is said by `live.core.traps.TrapRequest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from live.core.errors import PseError, TargetError
from live.core.memory import Asid, GuestPhysical
from live.core.traps import Abi, Action, TrapRequest, Word

SYSCALL_BYTES = 2
"""Bytes of an instruction that makes a system call."""
_COMPAT = (b"\xcd\x80", b"\x0f\x34")
"""``int 0x80`` and ``sysenter``; 32-bit code that uses ``syscall``, as it may on AMD, is taken for native."""

Read = Callable[[int, int], bytes]
"""(gpa, bytes): guest-physical memory; raises `MemoryFault`."""


def abi_of(instruction: bytes) -> Abi:
    """By which table the number of the system call is meant that an instruction makes."""
    return Abi.COMPAT if instruction[:SYSCALL_BYTES] in _COMPAT else Abi.NATIVE


def refuse(asked: Filter, syscalls: bool) -> None:
    """Raises `TargetError` for what cannot be trapped; ``syscalls``: whether system calls can."""
    request = asked.request
    if request.code or request.accesses:
        what = "code addresses" if request.code else "accesses to data"
        raise TargetError(
            f"PANDA's callbacks trap no {what}; trap asid changes and system calls, as asid mode does."
        )
    if asked.syscalls and not syscalls:
        raise TargetError(
            "System calls of this guest cannot be trapped: PANDA's plugin syscalls2 needs the operating "
            "system and a single vCPU; make the Panda object with os_version, and without -smp."
        )


class Filter:
    """One request, asked on the thread of the vCPU."""

    __slots__ = ("_any_number", "_flags", "_settled", "asids", "idle", "request", "syscalls")

    def __init__(self, request: TrapRequest) -> None:
        """Whether it asks for anything is worked out once."""
        self.request = request
        self._any_number = (
            request.syscalls | request.compat_syscalls if request.syscall_action else frozenset()
        )
        self._settled = request.settled - request.pending
        self._flags: dict[tuple[int, Abi], int] = {}
        for one in request.call_flags:
            key = one.number, one.abi
            self._flags[key] = self._flags.get(key, 0) | one.bits
        self.asids = bool(request.asid_changes or request.unsettled_asids or request.words)
        self.syscalls = bool(request.every_syscall or request.unsettled_syscalls or self._any_number)
        self.idle = not (self.asids or self.syscalls)

    def asid_change(self, new: Asid, moved: bool) -> Action:
        """Of a change to another asid; ``moved``: one of the words has."""
        request = self.request
        if moved:
            return Action.HOLD
        if new in self._settled:
            return request.asid_changes
        return max(request.asid_changes, request.unsettled_asids)

    def syscall(
        self, asid: Asid, number: int, abi: Callable[[], Abi], argument: Callable[[Abi], int]
    ) -> Action:
        """Of a system call in an asid.

        ``abi``, and ``argument``, the first one of such a call, are asked only if the answer depends on them.
        """
        request = self.request
        action = request.every_syscall
        if asid not in self._settled:
            action = max(action, request.unsettled_syscalls)
        if request.syscall_action > action and number in self._any_number:
            table = abi()
            listed = request.compat_syscalls if table is Abi.COMPAT else request.syscalls
            if number in listed and self._flagged(number, table, argument):
                action = request.syscall_action
        return action

    def _flagged(self, number: int, abi: Abi, argument: Callable[[Abi], int]) -> bool:
        """Whether a listed call is one of those that are wanted."""
        bits = self._flags.get((number, abi))
        return bits is None or bool(argument(abi) & bits)


class Words:
    """The words of a request, and what they held when they were last compared."""

    def __init__(self, words: tuple[Word, ...], read: Read, before: Words | None = None) -> None:
        """What moved since ``before`` compared it still counts.

        Raises `MemoryFault` for a word that is not in RAM, `TargetError` for one that is none.
        """
        for word in words:
            if word.size not in (4, 8) or word.gpa % word.size:
                raise TargetError(
                    f"{word.size} bytes at gpa {word.gpa:#x} are no aligned word; ask for 4 or 8 that are."
                )
        known: Mapping[Word, bytes] = {} if before is None else before._last
        self._read = read
        self._last: dict[Word, bytes] = {}
        for word in words:
            self._last[word] = known[word] if word in known else read(word.gpa, word.size)

    def moved(self) -> tuple[GuestPhysical, ...]:
        """Those that hold something else than at the last call.  Raises nothing: PANDA is our caller."""
        found: list[GuestPhysical] = []
        for word, last in self._last.items():
            try:
                now = self._read(word.gpa, word.size)
            except PseError:  # the machine is over, and nobody is told of anything any more
                continue
            if now != last:
                self._last[word] = now
                found.append(word.gpa)
        return tuple(dict.fromkeys(found))
