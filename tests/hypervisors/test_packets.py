"""The gdb protocol's codec: whole, byte by byte, with garbage around."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live.arch.x86_64 import X86_64
from live.hypervisors.qemu.gdbstub.packets import (
    MAX_PACKET,
    Corrupt,
    Decoder,
    Item,
    Notification,
    Packet,
    Signal,
    encode,
    expand,
)
from live.hypervisors.qemu.gdbstub.target import Register, Stop, decode_registers, parse_stop, parse_target

STREAM = b"+$OK#9a-xx$E01#a6%Stop:T05#99$T05thread:01;#07$bad#00$0* #7a+"
ITEMS: list[Item] = [
    Signal.ACK,
    Packet(b"OK"),
    Signal.NAK,
    Packet(b"E01"),
    Notification(b"Stop:T05"),
    Packet(b"T05thread:01;"),
    Corrupt(b"bad"),
    Packet(b"0000"),
    Signal.ACK,
]


def test_encode() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"") == b"$#00"
    assert encode(b"a$#}*") == b"$a}\x04}\x03}]}\x0a#c3"


def test_whole_byte_by_byte_and_in_halves() -> None:
    whole = Decoder()
    assert whole.feed(STREAM) == ITEMS
    assert whole.garbage == 2
    single = Decoder()
    assert [item for byte in STREAM for item in single.feed(bytes((byte,)))] == ITEMS
    for cut in range(len(STREAM)):
        decoder = Decoder()
        assert decoder.feed(STREAM[:cut]) + decoder.feed(STREAM[cut:]) == ITEMS


@given(st.lists(st.binary(max_size=40)), st.integers(1, 9))
def test_what_is_encoded_is_decoded(payloads: list[bytes], step: int) -> None:
    stream = b"".join(encode(payload) for payload in payloads)
    decoder = Decoder()
    items = [item for at in range(0, len(stream), step) for item in decoder.feed(stream[at : at + step])]
    assert items == [Packet(payload) for payload in payloads]


@given(st.binary(max_size=200))
def test_garbage_never_raises(data: bytes) -> None:
    Decoder().feed(data)


@pytest.mark.parametrize("raw", [b"}", b"a*", b"*a", b"a*\x01"])
def test_what_cannot_be_expanded(raw: bytes) -> None:
    assert expand(raw) is None


def test_an_endless_packet_is_dropped() -> None:
    (item,) = Decoder().feed(b"$" + b"0" * (MAX_PACKET + 4))
    assert isinstance(item, Corrupt)


def test_stops() -> None:
    assert parse_stop(b"T05thread:02;") == Stop(5, 2)
    assert parse_stop(b"T05thread:p01.0a;") == Stop(5, 10)
    assert parse_stop(b"T05thread:01;awatch:ffffffff81234560;") == Stop(5, 1, 0xFFFFFFFF81234560)
    assert parse_stop(b"S02") == Stop(2, 0)
    assert parse_stop(b"W00") is None
    assert parse_stop(b"Tzz") is None
    assert parse_stop(b"") is None


def test_registers_skip_what_the_description_has_in_comments() -> None:
    files = {
        "target.xml": '<target><xi:include href="core.xml"/></target>',
        "core.xml": (
            '<reg name="rax" bitsize="64" regnum="0"/><reg name="eflags" bitsize="32"/>'
            '<!-- <reg name="ss_base" bitsize="64"/> --><reg name="cr3" bitsize="64" regnum="29"/>'
        ),
    }
    layout = parse_target(files.__getitem__)
    assert layout == {"rax": Register(0, 0, 8), "eflags": Register(1, 8, 4), "cr3": Register(29, 12, 8)}
    answer = b"0102000000000000" + b"46020000" + b"00f0ff1f00000000"
    assert decode_registers(layout, answer) == {"rax": 0x201, "eflags": 0x246, "cr3": 0x1FFFF000}
    assert decode_registers(layout, answer[:24]) == {"rax": 0x201, "eflags": 0x246}
    assert decode_registers(layout, b"x" * 40) == {}


@pytest.mark.parametrize(
    ("code", "length"),
    [
        ("f30f1efa55", 4),
        ("0f1f440000", 5),
        ("660f1f0055", 4),
        ("90", 1),
        ("5548", 0),
        ("e812345678", 0),
        ("", 0),
    ],
)
def test_no_ops(code: str, length: int) -> None:
    assert X86_64.no_op_length(bytes.fromhex(code)) == length
