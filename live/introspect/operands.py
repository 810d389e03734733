"""Which instructions touch a word of the kernel's own data: no disassembler, one form of operand.

Kernel code reaches the kernel's data relative to its own address: a ModRM byte with mod 0 and r/m 5, a
signed 32-bit displacement, perhaps an immediate; the displacement counts from the end of the instruction (SDM
vol. 2, 2.2.1.6).  That an operand of this form hits one wanted word of 2**32 by chance does not happen.
"""

from __future__ import annotations

import struct

_MODRM = 0xC7
_RIP_RELATIVE = 0x05
_DISPLACEMENT = struct.Struct("<i")
_IMMEDIATES = (0, 1, 2, 4)
"""Bytes that may follow the displacement."""


def behind_accesses(code: bytes, address: int, word: int) -> frozenset[int]:
    """Addresses behind the instructions with an operand at ``word``.

    ``code`` begins at ``address``; all addresses are guest-virtual.
    """
    found = set()
    for at in range(1, len(code) - _DISPLACEMENT.size + 1):
        if code[at - 1] & _MODRM != _RIP_RELATIVE:
            continue
        (displacement,) = _DISPLACEMENT.unpack_from(code, at)
        for immediate in _IMMEDIATES:
            end = address + at + _DISPLACEMENT.size + immediate
            if end + displacement == word:
                found.add(end)
    return frozenset(found)
