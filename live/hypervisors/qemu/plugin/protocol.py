"""The wire format of the trap plugin, as bytes.  Pure: no I/O here.

The C side is wire.h, which also says what is sent when; `tests/hypervisors/test_wire.py` compares the two.
All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from live.core.machine import Architecture
from live.core.memory import GuestPhysical, GuestVirtual
from live.core.traps import Abi, Action, AsidChange, CodeHit, Syscall, Trap, TrapRequest, VcpuIndex
from live.hypervisors.qemu.plugin.settled import SLOTS

MAGIC = 0x31455350
PROTOCOL = 9

HELLO = struct.Struct("<4I")
"""Magic, protocol, vCPUs, slots."""
ARM = struct.Struct("<I8B6I4x48Q")
"""What a request begins with; quadwords follow."""
ANSWER = struct.Struct("<2Q")
"""A status, and for what count of flushes to wait, in the word at `FLUSHES_AT`: with `STATUS_FLUSHING` the
request is in force then, and with `STATUS_PREPARING` it can be sent again."""
EVENT = struct.Struct("<2Q4BI4Q18Q7Q")
"""What a slot of the ring begins with."""

STATUS_FLUSHING = 1
STATUS_NO_MEMORY = 4
STATUS_PREPARING = 5

RING_OFFSET_AT = 0
HEAD_AT, TAIL_AT, ASLEEP_AT, HANDLED_AT = 64, 128, 136, 144
DROPPED_AT, TIMEOUTS_AT, FLUSHES_AT, WAITED_AT = 192, 200, 208, 216
SETTLED_AT = 256
RESUMED_AT = SETTLED_AT + 8 * SLOTS
"""Where in shared memory which quadword is, in bytes; the last one is the first vCPU's,"""
RESUMED_STRIDE = 64
"""and so far from the next one's."""

EVENT_SIZE = 256
"""Bytes of a slot."""
ACTION_AT = 17
"""Where in an event the action is that was taken; `FENCE` or more: the vCPU runs on, behind a fence."""
FENCE = 3

MAX_WORDS, MAX_CODE, MAX_FENCES, MAX_ENTRIES, MAX_FLAGS = 4096, 4096, 64, 16, 16
NUMBERS = 1024
"""System calls that can be listed: numbers below this one."""
REGISTERS = 18
BRIEF = (0, 2, 6, 7, 10)
"""Which registers, of `Architecture.trap_registers`, an event has whose vCPU does not stand."""
KIND_ASID_CHANGE, KIND_SYSCALL = 1, 2
_HOLD = int(Action.HOLD)


def _bitmap(numbers: frozenset[int]) -> list[int]:
    words = [0] * (NUMBERS // 64)
    for number in numbers:
        if not 0 <= number < NUMBERS:
            raise ValueError(f"system-call number {number} is not in 0..{NUMBERS - 1}")
        words[number // 64] |= 1 << number % 64
    return words


def encode_request(request: TrapRequest, hold_ms: int, hva: Callable[[int, int], int]) -> bytes:
    """The message for a request, all but its settled asids (`live.hypervisors.qemu.plugin.settled`).

    ``hold_ms``: for how many milliseconds a vCPU is held at most.  ``hva(gpa, length)``: the address in
    QEMU's process of ``length`` bytes of guest memory.  Raises `ValueError` for more than the plugin takes,
    and whatever ``hva`` raises.
    """
    code = sorted(request.code)
    fences = sorted(
        (one.code, one.offset, bool(one.passing)) for one in request.fences if one.code in request.code
    )
    passing = {one.passing for one in request.fences if one.passing}
    if request.moved_fence:
        passing.add(request.moved_fence)
    words = dict(sorted((hva(word.gpa, word.size), word.size) for word in request.words))
    if len(words) > MAX_WORDS or len(code) > MAX_CODE:
        raise ValueError(f"more than {MAX_WORDS} words or {MAX_CODE} code addresses")
    if len(fences) > MAX_FENCES or len(request.entries) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_FENCES} fences or {MAX_ENTRIES} entries")
    flags = sorted((one.number, one.abi, one.bits) for one in request.call_flags)
    if len(flags) > MAX_FLAGS:
        raise ValueError(f"more than {MAX_FLAGS} system calls with flags")
    if len(passing) > 1:
        raise ValueError("fences that different system calls pass")
    tail: list[int] = []
    for word in words.items():
        tail += word
    tail += code
    for fence in fences:
        tail += fence
    for entry in sorted(request.entries):
        tail += entry
    for flag in flags:
        tail += flag
    return ARM.pack(
        ARM.size + 8 * len(tail),
        request.asid_changes,
        request.every_syscall,
        request.syscall_action,
        request.code_action,
        request.unsettled_asids,
        request.unsettled_syscalls,
        request.split_asids,
        request.moved_fence is not None,
        hold_ms,
        len(words),
        len(code),
        len(fences),
        len(request.entries),
        len(flags),
        *_bitmap(request.syscalls),
        *_bitmap(request.compat_syscalls),
        *_bitmap(frozenset().union(*passing)),
    ) + struct.pack(f"<{len(tail)}Q", *tail)


def decode_event(
    memory: memoryview,
    at: int,
    machine: Architecture,
    *,
    split: bool = True,
    words: Mapping[int, GuestPhysical] = MappingProxyType({}),
) -> Trap:
    """The trap in the slot at byte ``at`` of the shared memory.

    ``split``: as in the request.  ``words``: address in QEMU's process -> gpa of those that are compared.
    """
    (sequence, time_ns, kind, action, abi, moved, vcpu, root, new_root, pc, number, *rest) = (
        EVENT.unpack_from(memory, at)
    )
    values, addresses = rest[:REGISTERS], rest[REGISTERS : REGISTERS + moved]
    names = machine.trap_registers
    if action == _HOLD:
        registers = dict(zip(names, values, strict=True))
    else:
        registers = {names[index]: values[index] for index in BRIEF}
    common: dict[str, Any] = {
        "vcpu": VcpuIndex(vcpu),
        "asid": machine.asid_of(root, split=split),
        "pc": GuestVirtual(pc),
        "sequence": sequence,
        "time_ns": time_ns,
        "held": action >= _HOLD,
        "registers": registers,
    }
    if kind == KIND_ASID_CHANGE:
        known = [words[address] for address in addresses if address in words]
        which = tuple(known) if len(known) == moved else ()
        return AsidChange(
            **common, new_asid=machine.asid_of(new_root, split=split), moved=bool(moved), words=which
        )
    if kind == KIND_SYSCALL:
        return Syscall(**common, number=number, abi=Abi(abi))
    return CodeHit(**common)
