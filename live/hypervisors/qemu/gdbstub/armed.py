"""What the stub was told to trap.  Pure: a request in, packets out; answers in, what is trapped now.

A change is made in one round trip: what is not wanted any more goes first, because a processor has four
hardware breakpoints.  The code is read before a breakpoint is set: a software breakpoint replaces its first
byte in guest memory, elsewhere than under TCG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from live.core.errors import TargetError
from live.core.memory import GuestVirtual
from live.core.traps import TrapRequest, Watchpoint

_PARTS = 2
"""Requests that it takes to set a breakpoint."""


class Places:
    """The words that are watched, by the addresses behind the accesses to them."""

    def __init__(self, watchpoints: Iterable[Watchpoint] = ()) -> None:
        """Nothing is read from ``watchpoints`` later."""
        watchpoints = frozenset(watchpoints)
        self.watchpoints = watchpoints
        self.words = frozenset(one.word for one in watchpoints)
        self._behind: dict[int, GuestVirtual] = {pc: one.word for one in watchpoints for pc in one.behind}
        self._known = self._behind.keys() | {pc for one in watchpoints for pc in one.others}

    def word(self, pc: int) -> GuestVirtual | None:
        """The word that a vCPU at ``pc`` has touched, if that is a trap."""
        return self._behind.get(pc)

    def touched(self, pc: int) -> bool:
        """Whether a vCPU at ``pc`` has touched a word, trap or not."""
        return pc in self._known


@dataclass(frozen=True, slots=True)
class Change:
    """What it takes to come from what is armed to what is wanted."""

    requests: tuple[bytes, ...]
    """Whose answers `Armed.answered` takes.  The last of them set ``code``, then ``words``."""
    gone: tuple[int, ...]
    """Guest-virtual addresses that lose their breakpoint."""
    code: tuple[int, ...]
    """Guest-virtual addresses that get one."""
    words: tuple[int, ...]
    """Guest-virtual addresses that get a watchpoint."""
    places: Places


class Armed:
    """Breakpoints and watchpoints that are set; ``hardware``: whether breakpoints are the processor's own."""

    def __init__(self, *, hardware: bool = False) -> None:
        """Nothing is."""
        self._kind = b"1" if hardware else b"0"
        self._first_bytes: dict[int, bytes] = {}
        """Address of a breakpoint -> the byte of code there."""
        self.places = Places()

    def code(self, address: int) -> bool:
        """Whether there is a breakpoint at a guest-virtual address."""
        return address in self._first_bytes

    def first_byte(self, address: int) -> bytes:
        """The byte of code under the breakpoint there."""
        return self._first_bytes[address]

    def removed(self, address: int) -> bytes:
        """The request that removes a breakpoint."""
        return b"z%b,%x,1" % (self._kind, address)

    def restored(self, address: int) -> bytes:
        """The request that sets it."""
        return b"Z%b,%x,1" % (self._kind, address)

    def change(self, request: TrapRequest) -> Change | None:
        """What is to be sent; None: nothing is to be changed.

        Raises `TargetError` for what is neither code nor an access to data.
        """
        others = (request.asid_changes, request.syscalls, request.compat_syscalls, request.every_syscall)
        if any(others) or request.unsettled_asids or request.unsettled_syscalls or request.words:
            raise TargetError("The gdb stub traps code and data only; use plugin mode for the rest.")
        wanted = request.code if request.code_action else frozenset[GuestVirtual]()
        if wanted == self._first_bytes.keys() and request.accesses == self.places.watchpoints:
            return None
        places = Places(request.accesses)
        gone = tuple(sorted(self._first_bytes.keys() - wanted))
        code = tuple(sorted(wanted - self._first_bytes.keys()))
        words = tuple(sorted(places.words - self.places.words))
        requests = [
            *(self.removed(address) for address in gone),
            *(b"z4,%x,4" % word for word in sorted(self.places.words - places.words)),
            *(part for address in code for part in (b"m%x,1" % address, self.restored(address))),
            *(b"Z4,%x,4" % word for word in words),
        ]
        return Change(tuple(requests), gone, code, words, places)

    def begun(self, change: Change) -> None:
        """The change is about to be sent: until it is answered, what it sets or removes is not armed."""
        for address in change.gone:
            del self._first_bytes[address]
        self.places = Places()

    def answered(self, change: Change, answers: Sequence[bytes]) -> None:
        """What is set is armed.  Raises `TargetError` with the first address where the stub refuses."""
        refused: list[tuple[int, bytes]] = []
        of_code = len(answers) - len(change.words) - _PARTS * len(change.code)
        of_words = len(answers) - len(change.words)
        for at, address in enumerate(change.code):
            byte, answer = answers[of_code + _PARTS * at : of_code + _PARTS * (at + 1)]
            if answer == b"OK" and byte[:1] != b"E":
                self._first_bytes[address] = bytes.fromhex(byte.decode())
            else:
                refused.append((address, byte if byte[:1] == b"E" else answer))
        unset = set()
        for word, answer in zip(change.words, answers[of_words:], strict=True):
            if answer != b"OK":
                refused.append((word, answer))
                unset.add(word)
        self.places = Places(one for one in change.places.watchpoints if one.word not in unset)
        if refused:
            address, answer = refused[0]
            raise TargetError(
                f"QEMU cannot trap at {address:#x} ({answer.decode('ascii', 'replace') or 'unsupported'}); "
                "use --mode poll."
            )
