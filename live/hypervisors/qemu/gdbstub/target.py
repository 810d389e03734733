"""What a stub tells of its target: registers (target.xml) and stops.  Pure parsing.

A stub sends the registers of ``g`` in the order of the feature files that target.xml includes; a ``regnum``
moves on from there ("Target Description Format" in the gdb manual).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from live.core.errors import TargetError
from live.core.machine import Architecture

TRAP_SIGNAL = 5
"""A vCPU has hit a breakpoint or a watchpoint, or was stepped."""
INTERRUPT_SIGNAL = 2
"""0x03, or a pause by somebody else."""

CORE_FILES = {"x86_64": (b"i386", "i386-64bit.xml")}
"""Architecture -> what gdb says that it understands of it (``xmlRegisters``), and QEMU's description of its
core registers, with which ``g`` begins.

That file is asked for by name, because ``target.xml``, which QEMU composes for each connection, is memory
that it never frees.  Without an entry ``target.xml`` is read.
"""

_INCLUDE = re.compile(r"<xi:include\s+href=\"([^\"]+)\"")
_REG = re.compile(r"<reg\s[^>]*>")
_ATTRIBUTE = re.compile(r"([\w-]+)=\"([^\"]*)\"")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
"""QEMU describes registers in comments that it does not send."""
_WATCH = re.compile(r"[ra]?watch:([0-9a-f]+)")
_THREAD = re.compile(r"thread:(?:p[0-9a-f]+\.)?([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Register:
    """Where a register lies in the answer to ``g``."""

    number: int
    offset: int
    """Bytes."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop reply."""

    signal: int
    """As gdb numbers them: `TRAP_SIGNAL`, `INTERRUPT_SIGNAL`, ..."""
    thread: int
    """1 is the first vCPU; 0 if the stub did not say."""
    watch: int | None = None
    """Guest-virtual address of the watchpoint that was hit, if it was one."""


class RegisterFile:
    """The registers of an architecture that matter here, as a stub describes them."""

    def __init__(self, described: Mapping[str, Register], machine: Architecture) -> None:
        """Raises `TargetError` where no program counter is described."""
        self._machine = machine
        wanted = {*machine.trap_registers, machine.pc, machine.page_root}
        self._layout = {name: where for name, where in described.items() if name in wanted}
        if machine.pc not in self._layout:
            raise TargetError(
                f"QEMU's gdb stub describes no program counter of a vCPU of {machine.name}; use --mode poll."
            )
        self._decode = _decoder(self._layout)

    def decode(self, answer: bytes) -> dict[str, int]:
        """Values by name from the answer to ``g``."""
        return self._decode(answer)

    def ask_pc(self) -> bytes:
        """The request for the program counter alone; `number_of` has its value."""
        return b"p%x" % self._layout[self._machine.pc].number

    def set_pc(self, address: int) -> bytes:
        """The request that sets the program counter to a guest-virtual address."""
        register = self._layout[self._machine.pc]
        digits = address.to_bytes(register.size, "little").hex().encode()
        return b"P%x=%b" % (register.number, digits)


def parse_target(read: Callable[[str], str], name: str = "target.xml") -> dict[str, Register]:
    """Registers by name.  ``read(name)`` gives a description file; includes are followed one level down."""
    text = _COMMENT.sub("", read(name))
    files = [_COMMENT.sub("", read(include)) for include in _INCLUDE.findall(text)] or [text]
    registers: dict[str, Register] = {}
    number = offset = 0
    for file in files:
        for tag in _REG.findall(file):
            attributes = dict(_ATTRIBUTE.findall(tag))
            number = int(attributes.get("regnum", number))
            size = int(attributes.get("bitsize", "0")) // 8
            registers.setdefault(attributes.get("name", ""), Register(number, offset, size))
            number += 1
            offset += size
    return registers


def decode_registers(layout: Mapping[str, Register], answer: bytes) -> dict[str, int]:
    """Values by name from the answer to ``g`` (little-endian hexadecimal); unavailable ones are left out."""
    return _decoder(layout)(answer)


def _decoder(layout: Mapping[str, Register]) -> Callable[[bytes], dict[str, int]]:
    """`decode_registers` for one layout: the guest stands while its answers are decoded."""
    places = {name: slice(one.offset, one.offset + one.size) for name, one in layout.items()}
    end = max((place.stop for place in places.values()), default=0)

    def decode(answer: bytes) -> dict[str, int]:
        try:
            values = bytes.fromhex(answer[: 2 * end].decode())
        except ValueError:
            values = b""
        if len(values) == end:
            number = int.from_bytes
            return {name: number(values[place], "little") for name, place in places.items()}
        return _decode_partial(places, answer)

    return decode


def _decode_partial(places: Mapping[str, slice], answer: bytes) -> dict[str, int]:
    found = {}
    for name, place in places.items():
        digits = answer[2 * place.start : 2 * place.stop]
        if len(digits) == 2 * (place.stop - place.start) and b"x" not in digits:
            found[name] = int.from_bytes(bytes.fromhex(digits.decode()), "little")
    return found


def parse_stop(payload: bytes) -> Stop | None:
    """A ``T`` or ``S`` packet; None for anything else (``W``: the process, that is the machine, exited)."""
    text = payload.decode("ascii", "replace")
    if text[:1] not in ("T", "S"):
        return None
    try:
        signal = int(text[1:3], 16)
    except ValueError:
        return None
    thread, watch = _THREAD.search(text), _WATCH.search(text)
    return Stop(signal, int(thread[1], 16) if thread else 0, int(watch[1], 16) if watch else None)


def number_of(answer: bytes) -> int:
    """The value of one register, little-endian hexadecimal; 0 where the stub has none to tell."""
    try:
        return int.from_bytes(bytes.fromhex(answer.decode("ascii")), "little")
    except ValueError:
        return 0
