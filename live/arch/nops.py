"""The no-ops that kernel functions begin with: what a breakpoint there stops before need not be stepped."""

from __future__ import annotations

_NOPS = (
    (b"\xf3\x0f\x1e\xfa", 4),  # endbr64
    (b"\x0f\x1f\x44\x00\x00", 5),  # what ftrace makes of a call to __fentry__
    (b"\x66\x0f\x1f\x00", 4),  # what the kernel makes of endbr64 where it is not needed
    (b"\x0f\x1f\x40\xd6", 4),  # the same, with a mark (from 6.15)
    (b"\x90", 1),
)
LONGEST = 5
"""Bytes."""


def nop_length(code: bytes) -> int:
    """Length of the no-op that ``code`` begins with, 0 if there is none."""
    for pattern, length in _NOPS:
        if code.startswith(pattern):
            return length
    return 0
