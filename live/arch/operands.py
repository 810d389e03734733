"""Which instructions touch a word of the kernel's own data: no disassembler, one form of operand.

Kernel code reaches the kernel's data relative to its own address: an opcode, a ModRM byte with mod 0 and
r/m 5, a signed 32-bit displacement, perhaps an immediate; the displacement counts from the end of the
instruction (SDM vol. 2, 2.2.1.6), so it takes the opcode to know where it leads.  That what is no such
operand hits one wanted word of 2**32 by chance does not happen.
"""

from __future__ import annotations

import struct

_MODRM = 0xC7
_RIP_RELATIVE = 0x05
_DISPLACEMENT = struct.Struct("<i")
_BEFORE = 2  # opcode and ModRM
_IMMEDIATES = {
    **dict.fromkeys((0x6B, 0x80, 0x83, 0xBA, 0xC0, 0xC1, 0xC6), (1,)),
    **dict.fromkeys((0x69, 0x81, 0xC7), (4, 2)),
    0xF6: (0, 1),
    0xF7: (0, 4, 2),
}
"""Opcode -> bytes that may follow the displacement, where there are any; 2 with an operand-size prefix."""


def behind_accesses(code: bytes, address: int, word: int) -> frozenset[int]:
    """Addresses behind the instructions with an operand at ``word``.

    ``code`` begins at ``address``; all addresses are guest-virtual.
    """
    found = set()
    for at in range(_BEFORE, len(code) - _DISPLACEMENT.size + 1):
        if code[at - 1] & _MODRM != _RIP_RELATIVE:
            continue
        (displacement,) = _DISPLACEMENT.unpack_from(code, at)
        for immediate in _IMMEDIATES.get(code[at - _BEFORE], (0,)):
            end = address + at + _DISPLACEMENT.size + immediate
            if end + displacement == word:
                found.add(end)
    return frozenset(found)
