"""What goes between the plugin and its reader, byte for byte; and how the plugin is built."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from live.arch.x86_64 import X86_64, Architecture
from live.core.errors import TargetError
from live.core.memory import Asid, GuestPhysical, GuestVirtual
from live.core.traps import (
    Abi,
    Action,
    AsidChange,
    CallFlags,
    CodeHit,
    Fence,
    Syscall,
    Trap,
    TrapRequest,
    Word,
)
from live.hypervisors.qemu.plugin import build, protocol
from live.hypervisors.qemu.plugin.source import PluginSource

REGISTERS = list(range(100, 118))


def nowhere(_gpa: int, _length: int) -> int:
    return 0


def event(
    kind: int, *, action: int = Action.HOLD, abi: int = 0, moved: int = 0, registers: list[int] = REGISTERS
) -> Trap:
    raw = struct.pack(
        "<2Q4BI4Q18Q", 7, 8, kind, action, abi, moved, 2,
        0x8000_0000_1234_5678, 0x9000_1ABC, 0xFFFF_FFFF_8100_0000, 59, *registers,
    )  # fmt: skip
    return protocol.decode_event(memoryview(b"\0" * 256 + raw.ljust(256, b"\0")), 256, X86_64)


def test_the_empty_request_traps_nothing() -> None:
    message = protocol.encode_request(TrapRequest(), 1000, nowhere)
    assert message == struct.pack("<I8B6I4x48Q", 424, 0, 0, 2, 2, 0, 0, 1, 0, 1000, *[0] * 5, *[0] * 48)


def test_a_request_with_everything() -> None:
    request = TrapRequest(
        asid_changes=Action.RECORD,
        syscalls=frozenset({0, 59, 1023}),
        compat_syscalls=frozenset({11}),
        call_flags=frozenset({CallFlags(number=11, abi=Abi.COMPAT, bits=0x100)}),
        settled=frozenset({Asid(0x4000)}),
        unsettled_asids=Action.RECORD,
        moved_fence=frozenset({61, 247}),
        unsettled_syscalls=Action.HOLD,
        words=(
            Word(gpa=GuestPhysical(0x2004), size=4),
            Word(gpa=GuestPhysical(0x1000)),
            Word(gpa=GuestPhysical(0x1000)),
        ),
        code=frozenset({GuestVirtual(0xFFFFFFFF81000010), GuestVirtual(0xFFFFFFFF81000000)}),
        fences=frozenset(
            Fence(code=GuestVirtual(code), offset=0x940, passing=passing)
            for code, passing in (
                (0xFFFFFFFF81000000, frozenset[int]()),
                (0xFFFFFFFF81000010, frozenset({61, 247})),
                (0xFFFFFFFF82000000, frozenset[int]()),
            )
        ),
        entries=frozenset(
            {
                (GuestVirtual(0xFFFFFFFF83000010), Abi.NATIVE),
                (GuestVirtual(0xFFFFFFFF83000000), Abi.COMPAT),
            }
        ),
    )
    message = protocol.encode_request(request, 250, lambda gpa, _: 0x7F0000000000 + gpa)
    bits = [0] * 48
    bits[0], bits[15], bits[16] = 1 | 1 << 59, 1 << 63, 1 << 11
    bits[32], bits[35] = 1 << 61, 1 << 55
    tail = [0x7F0000001000, 8, 0x7F0000002004, 4]
    tail += [0xFFFFFFFF81000000, 0xFFFFFFFF81000010]
    tail += [0xFFFFFFFF81000000, 0x940, 0, 0xFFFFFFFF81000010, 0x940, 1]
    tail += [0xFFFFFFFF83000000, 1, 0xFFFFFFFF83000010, 0]
    tail += [11, 1, 0x100]
    head = (424 + 152, 1, 0, 2, 2, 1, 2, 1, 1, 250, 2, 2, 2, 2, 1)
    assert message == struct.pack("<I8B6I4x67Q", *head, *bits, *tail)


def test_what_the_plugin_cannot_take() -> None:
    with pytest.raises(ValueError, match="1024 is not in"):
        protocol.encode_request(TrapRequest(syscalls=frozenset({1024})), 1, nowhere)
    with pytest.raises(ValueError, match="more than"):
        protocol.encode_request(TrapRequest(code=frozenset(map(GuestVirtual, range(5000)))), 1, nowhere)
    fences = frozenset(Fence(code=GuestVirtual(at), offset=0, passing=frozenset({at})) for at in (1, 2))
    with pytest.raises(ValueError, match="different system calls pass"):
        protocol.encode_request(TrapRequest(fences=fences), 1, nowhere)


def test_events() -> None:
    names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
    hit = event(3)
    assert isinstance(hit, CodeHit)
    assert (hit.sequence, hit.time_ns, hit.vcpu, hit.held, hit.pc) == (7, 8, 2, True, 0xFFFFFFFF81000000)
    assert hit.asid == 0x12344000
    assert hit.registers == dict(zip((*names, "gs_base", "k_gs_base"), REGISTERS, strict=True))
    call = event(2, abi=1)
    assert isinstance(call, Syscall)
    assert (call.number, call.abi) == (59, Abi.COMPAT)
    change = event(1, moved=1)
    assert isinstance(change, AsidChange)
    assert (change.new_asid, change.moved) == (0x90000000, True)


@pytest.mark.parametrize("action", [Action.RECORD, protocol.FENCE, protocol.FENCE + 1])
def test_without_a_hold_an_event_has_the_registers_that_were_read(action: int) -> None:
    brief = [value if index in (0, 2, 6, 7, 10) else 0 for index, value in enumerate(REGISTERS)]
    call = event(2, action=action, registers=brief)
    assert call.held is (action > Action.RECORD)
    assert call.registers == {"rax": 100, "rdx": 102, "rsi": 106, "rdi": 107, "r10": 110}


def test_the_plugin_is_for_one_architecture() -> None:
    class Another(Architecture):
        name = "riscv64"

    with pytest.raises(TargetError, match="is for x86_64, and this guest is riscv64; use another mode"):
        PluginSource("/nowhere", Another(), nowhere)


def test_build_once_under_a_name_that_holds_the_sources(tmp_path: Path) -> None:
    first = build.build(tmp_path)
    assert first == tmp_path / f"pse-trap-{build.source_hash()}.so"
    stamp = first.stat().st_mtime_ns
    assert build.build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert build.argument("/run/t.sock", first) == f"file={first},socket=/run/t.sock"


def test_without_a_compiler_the_mode_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TargetError, match=r"install gcc \(or set CC\), or use --mode gdbstub"):
        build.build(tmp_path)


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho oh dear >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(TargetError, match=r"does not compile with .* \(oh dear\); use --mode"):
        build.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
