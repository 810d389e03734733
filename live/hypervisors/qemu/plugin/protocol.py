"""What the trap plugin and its reader exchange, as bytes (the C side is shared.h).  Pure.

Connecting yields 16 bytes (magic, protocol, vCPUs, slots) with descriptors: a memfd, an eventfd that the
plugin writes when something wants to be read, and one eventfd per vCPU that the reader writes after a resume
word.  Each request sent is answered with 16 bytes: a status and the number of the cache flush that it waits
for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from live.core.memory import GuestVirtual
from live.core.traps import AsidChange, CodeHit, Entry, Syscall, Trap, TrapRequest, VcpuIndex, asid_of

MAGIC = 0x31455350
PROTOCOL = 5
HELLO = struct.Struct("<4I")
ANSWER = struct.Struct("<2Q")
ARM, PREPARE, MADE = range(3)
"""What a request is for: to be in force; to have in code that is made from now on what it will need; to be in
force, and its addresses are in no code from before that.  Such code is what `STATUS_UNMADE` tells of."""
STATUS_FLUSHING = 1
STATUS_NO_MEMORY = 4
STATUS_UNMADE = 5

RING_OFFSET = struct.Struct("<Q")
RING_OFFSET_AT = 16
HEAD_AT, TAIL_AT, ASLEEP_AT = 64, 128, 136
DROPPED_AT, TIMEOUTS_AT, FLUSHES_AT, WAITED_AT = 192, 200, 208, 216
RESUMED_AT = 256
RESUMED_STRIDE = 64
EVENT_SIZE = 256
HELD_AT, FENCED = 17, 2
"""Where in an event it says how it is held, and the least value for a fence."""
CPU = struct.Struct("<Q")
CPU_AT = 200
"""Where it says on which of the host's CPUs the vCPU was."""

_EVENT = struct.Struct("<2Q4BI4Q18Q")
_HEAD = struct.Struct("<I4B8I48Q")
_REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "gs_base", "k_gs_base"),
)
_BRIEF = (0, 2, 6, 7, 10)
_KIND_ASID, _KIND_SYSCALL = 1, 2
_HELD = 1
MAX_PENDING, MAX_WORDS, MAX_CODE, MAX_FENCES, MAX_ENTRIES = 4096, 64, 4096, 64, 16
_NUMBERS = 1024


def _bitmap(numbers: frozenset[int]) -> list[int]:
    words = [0] * (_NUMBERS // 64)
    for number in numbers:
        if not 0 <= number < _NUMBERS:
            raise ValueError(f"system-call number {number} is not in 0..{_NUMBERS - 1}")
        words[number // 64] |= 1 << number % 64
    return words


def encode_request(
    request: TrapRequest, hold_ms: int, address_of: Callable[[int, int], int], stage: int = ARM
) -> bytes:
    """The message for a request.

    ``address_of(gpa, size)`` gives the address of guest memory in QEMU's process.  Raises `ValueError` for
    more than the plugin takes, and whatever ``address_of`` raises.
    """
    pending = sorted(request.pending)
    code = sorted(request.code)
    fences = sorted(
        (one.code, one.offset, bool(one.passing)) for one in request.fences if one.code in request.code
    )
    passing = {one.passing for one in request.fences if one.passing}
    if len(pending) > MAX_PENDING or len(request.words) > MAX_WORDS or len(code) > MAX_CODE:
        raise ValueError(f"more than {MAX_PENDING} asids, {MAX_WORDS} words or {MAX_CODE} code addresses")
    if len(fences) > MAX_FENCES or len(request.entries) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_FENCES} fences or {MAX_ENTRIES} entries")
    if len(passing) > 1:
        raise ValueError("fences that different system calls pass")
    tail: list[int] = [*pending]
    for word in request.words:
        tail += [address_of(word.gpa, word.size), word.size]
    tail += code
    for fence in fences:
        tail += fence
    for entry in sorted(request.entries):
        tail += entry
    bits = [*_bitmap(request.syscalls), *_bitmap(request.syscalls32), *_bitmap(frozenset().union(*passing))]
    return _HEAD.pack(
        _HEAD.size + 8 * len(tail),
        request.asid_changes,
        request.every_syscall,
        request.syscall_action,
        request.code_action,
        hold_ms,
        len(pending),
        len(request.words),
        len(code),
        len(fences),
        len(request.entries),
        stage,
        0,
        *bits,
    ) + struct.pack(f"<{len(tail)}Q", *tail)


def decode_event(memory: memoryview, at: int) -> Trap:
    """The trap in the ring's slot at byte ``at`` of the shared memory."""
    (sequence, time, kind, held, entry, moved, vcpu, cr3, new_cr3, pc, number, *values) = _EVENT.unpack_from(
        memory, at
    )
    registers = dict(zip(_REGISTERS, values, strict=True))
    if held != _HELD:  # a few registers only
        registers = {_REGISTERS[index]: values[index] for index in _BRIEF}
    common: dict[str, Any] = {
        "vcpu": VcpuIndex(vcpu),
        "asid": asid_of(cr3),
        "cr3": cr3,
        "pc": GuestVirtual(pc),
        "sequence": sequence,
        "time_ns": time,
        "held": bool(held),
        "registers": registers,
    }
    if kind == _KIND_ASID:
        return AsidChange(**common, new_asid=asid_of(new_cr3), moved=bool(moved))
    if kind == _KIND_SYSCALL:
        return Syscall(**common, number=number, entry=Entry(entry))
    return CodeHit(**common)
