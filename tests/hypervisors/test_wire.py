"""The two sides of the plugin's wire format agree: protocol.py, and what a C compiler makes of wire.h."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from live.arch.x86_64 import X86_64
from live.core.traps import Abi, Action
from live.hypervisors.qemu.plugin import build, protocol, settled

WIRE = Path(build.__file__).with_name("wire.h")
STRUCTS = {
    "hello": (protocol.HELLO, "magic protocol vcpus slots"),
    "event": (
        protocol.EVENT,
        "sequence time_ns kind action abi moved vcpu cr3 new_cr3 pc number registers*18 words*7",
    ),
    "arm": (
        protocol.ARM,
        "length asid every syscall code unsettled_asid unsettled_syscall split moved_fence "
        "hold_ms n_words n_code n_fences n_entries n_flags "
        "syscalls*16 compat_syscalls*16 passing*16",
    ),
    "answer": (protocol.ANSWER, "reply flush"),
}
"""By the name of the struct: how protocol.py packs it, and its members in that order, with their length."""
ENUMS = {
    "MAGIC": protocol.MAGIC,
    "PROTOCOL": protocol.PROTOCOL,
    "SETTLED_BITS": settled.BITS,
    "SETTLED_SLOTS": settled.SLOTS,
    "SETTLED_PROBES": settled.PROBES,
    "SETTLED_EMPTY": settled.EMPTY,
    "SETTLED_MARK": settled.MARK,
    "SETTLED_GONE": settled.GONE,
    **{
        f"SETTLED_FIRST({asid:#x}ull)": settled.first_slot(asid) for asid in (0x1000, 0x12345000, 0xFFFF_F000)
    },
    "MAX_WORDS": protocol.MAX_WORDS,
    "MAX_CODE": protocol.MAX_CODE,
    "MAX_FENCES": protocol.MAX_FENCES,
    "MAX_ENTRIES": protocol.MAX_ENTRIES,
    "MAX_FLAGS": protocol.MAX_FLAGS,
    "SYSCALL_NUMBERS": protocol.NUMBERS,
    "ASID_CHANGE": protocol.KIND_ASID_CHANGE,
    "SYSCALL": protocol.KIND_SYSCALL,
    "FLUSHING": protocol.STATUS_FLUSHING,
    "NO_MEMORY": protocol.STATUS_NO_MEMORY,
    "PREPARING": protocol.STATUS_PREPARING,
    "FENCE": protocol.FENCE,
    **{action.name: action.value for action in Action},
    **{abi.name: abi.value for abi in Abi},
    "EVENT_REGISTERS": len(X86_64.trap_registers),
    "EVENT_WORDS": 7,
    # What `encode_request` appends for one of each.
    "QUADS_PER_WORD": 2,
    "QUADS_PER_FENCE": 3,
    "QUADS_PER_ENTRY": 2,
    "QUADS_PER_FLAGS": 3,
}
OFFSETS = {
    "shared.ring_offset": protocol.RING_OFFSET_AT,
    "shared.settled": protocol.SETTLED_AT,
    "shared.head": protocol.HEAD_AT,
    "shared.tail": protocol.TAIL_AT,
    "shared.asleep": protocol.ASLEEP_AT,
    "shared.handled": protocol.HANDLED_AT,
    "shared.dropped": protocol.DROPPED_AT,
    "shared.timeouts": protocol.TIMEOUTS_AT,
    "shared.flushes": protocol.FLUSHES_AT,
    "shared.waited_ns": protocol.WAITED_AT,
    "shared.vcpu[0].resumed": protocol.RESUMED_AT,
    "shared.vcpu[1].resumed": protocol.RESUMED_AT + protocol.RESUMED_STRIDE,
    "event.action": protocol.ACTION_AT,
}


def members_of(name: str) -> list[tuple[str, int]]:
    """(name, length) of each member."""
    pairs = (word.partition("*") for word in STRUCTS[name][1].split())
    return [(f"{name}.{member}", int(length or 1)) for member, _, length in pairs]


def compiled(wire: Path, directory: Path) -> dict[str, str]:
    """What the header's names stand for, by the compiler."""
    offsets = dict.fromkeys([*OFFSETS, *(member for name in STRUCTS for member, _ in members_of(name))])
    sizes = [*STRUCTS, "shared"]
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        f'#include "{wire}"',
        "int main(void)",
        "{",
        "    const char *const names[] = {REGISTER_NAMES};",
        "    const int brief[] = {BRIEF_REGISTERS};",
        *(f'    printf("{name} %ld\\n", (long){name});' for name in ENUMS),
        *(f'    printf("{at} %zu\\n", offsetof(struct {at.replace(".", ", ", 1)}));' for at in offsets),
        *(f'    printf("{name} %zu\\n", sizeof(struct {name}));' for name in sizes),
        "    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)",
        '        printf("register%u %s\\n", i, names[i]);',
        "    for (unsigned i = 0; i < sizeof brief / sizeof *brief; i++)",
        '        printf("brief%u %d\\n", i, brief[i]);',
        "}",
    ]
    source, program = directory / "wire.c", directory / "wire"
    source.write_text("\n".join(lines))
    compiler = build.compiler()
    assert compiler is not None
    subprocess.run(
        [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", source, "-o", program],
        check=True,
        capture_output=True,
        text=True,
    )
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in output.splitlines())


def starts(layout: struct.Struct) -> list[int]:
    """The offset of each value that a layout packs."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([A-Zx])", layout.format):
        for _ in range(int(count or 1)):
            found += [at] if code != "x" else []
            at += struct.calcsize(f"<{code}")
    return found


def expected() -> dict[str, str]:
    """The same by protocol.py and the core's contracts."""
    values: dict[str, int | str] = {**ENUMS}
    for name, (layout, _) in STRUCTS.items():
        places, at = starts(layout), 0
        for member, length in members_of(name):
            values[member] = places[at]
            at += length
        assert at == len(places), f"{name}: as many values are packed as the struct has"
        values[name] = layout.size
    for place, offset in OFFSETS.items():
        assert values.setdefault(place, offset) == offset, place
    values |= {"event": protocol.EVENT_SIZE, "shared": protocol.RESUMED_AT}
    values |= {f"register{index}": name for index, name in enumerate(X86_64.trap_registers)}
    values |= {f"brief{index}": which for index, which in enumerate(protocol.BRIEF)}
    return {name: str(value) for name, value in values.items()}


def test_both_sides_agree(tmp_path: Path) -> None:
    assert compiled(WIRE, tmp_path) == expected()


@pytest.mark.parametrize(
    ("was", "is_now", "differs"),
    [
        ("PROTOCOL = 9", "PROTOCOL = 10", {"PROTOCOL"}),
        ("SYSCALL_NUMBERS = 1024", "SYSCALL_NUMBERS = 2048", {"SYSCALL_NUMBERS", "arm"}),
        ("MAX_FENCES = 64", "MAX_FENCES = 65", {"MAX_FENCES"}),
        ("OFF, RECORD,", "RECORD, OFF,", {"OFF", "RECORD"}),
        ("NATIVE, COMPAT", "COMPAT, NATIVE", {"NATIVE", "COMPAT"}),
        ("BAD, BAD_ADDRESS,", "BAD,", {"NO_MEMORY"}),
        ('"rcx", "rdx",', '"rdx", "rcx",', {"register1", "register2"}),
        ("0, 2, 6, 7, 10", "0, 2, 6, 7, 11", {"brief4"}),
        ("kind, action, abi", "action, kind, abi", {"event.action", "event.kind"}),
        ("cr3, new_cr3, pc", "new_cr3, cr3, pc", {"event.cr3", "event.new_cr3"}),
        ("timeouts, flushes", "flushes, timeouts", {"shared.flushes", "shared.timeouts"}),
        ("uint32_t hold_ms, ", "uint32_t more, hold_ms, ", {"arm.hold_ms", "arm"}),
    ],
)
def test_a_change_on_one_side_is_seen(tmp_path: Path, was: str, is_now: str, differs: set[str]) -> None:
    text = WIRE.read_text()
    assert text.count(was) == 1
    changed = tmp_path / "changed.h"
    changed.write_text(text.replace(was, is_now))
    found, wanted = compiled(changed, tmp_path), expected()
    assert differs <= {name for name in wanted if found.get(name) != wanted[name]}
