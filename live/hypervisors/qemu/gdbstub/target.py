"""What the stub tells about its target: registers (target.xml) and stops.  Pure parsing.

A stub sends the registers of ``g`` in the order of the feature files that target.xml includes; a ``regnum``
moves on from there ("Target Description Format" in the gdb manual).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_INCLUDE = re.compile(r"<xi:include\s+href=\"([^\"]+)\"")
_REG = re.compile(r"<reg\s[^>]*>")
_ATTRIBUTE = re.compile(r"([\w-]+)=\"([^\"]*)\"")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
"""QEMU's i386-64bit.xml has registers in comments that it does not send."""
_WATCH = re.compile(r"[ra]?watch:([0-9a-f]+)")
_THREAD = re.compile(r"thread:(?:p[0-9a-f]+\.)?([0-9a-f]+)")

WANTED = frozenset(
    [
        "rax",
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rbp",
        "rsp",
        "rip",
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
        "gs_base",
        "k_gs_base",
        "cr3",
    ]
)
"""Registers that a trap tells of."""


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
    """As gdb numbers them: 5 is a trap, 2 an interrupt."""
    thread: int
    """1 is the first vCPU; 0 if the stub did not say."""
    watch: int | None = None
    """Address of the watchpoint that was hit, if it was one."""


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


def decode_registers(layout: dict[str, Register], answer: bytes) -> dict[str, int]:
    """Values by name from the answer to ``g`` (little-endian hexadecimal); unavailable ones are left out."""
    values = {}
    for name, register in layout.items():
        digits = answer[2 * register.offset : 2 * (register.offset + register.size)]
        if len(digits) == 2 * register.size and b"x" not in digits:
            values[name] = int.from_bytes(bytes.fromhex(digits.decode()), "little")
    return values


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
