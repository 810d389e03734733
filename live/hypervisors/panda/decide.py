"""What of a request passes.  Pure: values in, an action out.

What is meant by each member of a request is said by `live.core.traps.TrapRequest`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from live.core.errors import PseError, TargetError
from live.core.memory import Asid
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


def refuse(request: TrapRequest, syscalls: bool) -> None:
    """Raises `TargetError` for what cannot be trapped; ``syscalls``: whether system calls can."""
    if request.code or request.accesses:
        what = "code addresses" if request.code else "accesses to data"
        raise TargetError(
            f"PANDA's callbacks trap no {what}; trap asid changes and system calls, or watch in poll mode."
        )
    if Filter(request).syscalls and not syscalls:
        raise TargetError(
            "System calls of this guest cannot be trapped: PANDA's plugin syscalls2 needs the operating "
            "system and a single vCPU; make the Panda object with os_version, and without -smp."
        )


class Filter:
    """One request, asked on the thread of the vCPU."""

    __slots__ = ("_any_number", "asids", "idle", "request", "syscalls")

    def __init__(self, request: TrapRequest) -> None:
        """Whether it asks for anything is worked out once."""
        self.request = request
        self._any_number = (
            request.syscalls | request.compat_syscalls if request.syscall_action else frozenset()
        )
        self.asids = bool(request.asid_changes or request.unsettled_asids or request.words)
        self.syscalls = bool(request.every_syscall or request.unsettled_syscalls or self._any_number)
        self.idle = not (self.asids or self.syscalls)

    def asid_change(self, new: Asid, moved: bool) -> Action:
        """Of a change to another asid; ``moved``: one of the words has."""
        request = self.request
        if moved:
            return Action.HOLD
        if new in request.settled:
            return request.asid_changes
        return max(request.asid_changes, request.unsettled_asids)

    def syscall(self, asid: Asid, number: int, abi: Callable[[], Abi]) -> Action:
        """Of a system call in an asid; ``abi`` is asked only if the answer depends on it."""
        request = self.request
        action = request.every_syscall
        if asid not in request.settled:
            action = max(action, request.unsettled_syscalls)
        if request.syscall_action > action and number in self._any_number:
            listed = request.compat_syscalls if abi() is Abi.COMPAT else request.syscalls
            if number in listed:
                action = request.syscall_action
        return action


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
            now = read(word.gpa, word.size)
            self._last[word] = known.get(word, now)

    def moved(self) -> bool:
        """Whether any holds something else than at the last call.  Raises nothing: PANDA is our caller."""
        found = False
        for word, last in self._last.items():
            try:
                now = self._read(word.gpa, word.size)
            except PseError:  # the machine is over, and nobody is told of anything any more
                continue
            if now != last:
                self._last[word] = now
                found = True
        return found
