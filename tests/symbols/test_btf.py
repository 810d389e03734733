"""The BTF decoder on blobs built by hand."""

import struct

import pytest

from live.core.errors import SymbolsMissing
from symbols import btf
from symbols.btf import Btf

from .build import BtfBuilder, kernel_btf


def test_types_by_name():
    types = Btf(kernel_btf().blob())
    (task,) = types.aggregates("task_struct")
    members = {member.name: (member.offset // 8, types.kind(member.type)) for member in types.members(task)}
    assert members == {
        "flags": (0, btf.INT),
        "usage": (4, btf.TYPEDEF),
        "tasks": (8, btf.STRUCT),
        "comm": (24, btf.ARRAY),
        "pid": (40, btf.INT),
        "type": (44, btf.ENUM),
        "": (48, btf.STRUCT),
    }
    assert types.size(task) == 128
    assert types.aggregates("no_such_type") == []


def test_all_kinds_are_skipped_rightly():
    b = BtfBuilder()
    integer = b.integer("int", 4, signed=True)
    for kind in (btf.FWD, btf.VOLATILE, btf.CONST, btf.RESTRICT, btf.FUNC, btf.FLOAT, btf.TYPE_TAG):
        b.add(kind, "x", integer)
    b.add(btf.FUNC_PROTO, "", integer, 0, integer, 0, integer, parts=2)
    b.add(btf.VAR, "per_cpu_variable", integer, 1)
    b.add(btf.DATASEC, ".data..percpu", 8, integer, 0, 4, parts=1)
    b.add(btf.DECL_TAG, "tag", integer, 0)
    b.add(btf.ENUM64, "wide", 8, b.string("HUGE"), 1, 2, parts=1)
    last = b.struct("last", 8, ("member", integer, 32))
    types = Btf(b.blob())
    assert types.aggregates("last") == [last]
    assert types.variables() == {"per_cpu_variable": integer}
    assert types.constants(types.aggregates("wide")[0]) == {"HUGE": 2 << 32 | 1}


def test_bitfields():
    b = BtfBuilder()
    integer = b.integer("unsigned int", 4)
    flags = b.struct("flags", 8, ("one", integer, 1 << 24 | 33), ("three", integer, 3 << 24 | 34), flag=True)
    assert [(m.name, m.offset, m.bits) for m in Btf(b.blob()).members(flags)] == [
        ("one", 33, 1),
        ("three", 34, 3),
    ]


@pytest.mark.parametrize(("flagged", "expected"), [(False, -1), (True, 0xFFFFFFFF)])
def test_enumerators_are_signed_unless_the_blob_knows_signs(flagged, expected):
    b = BtfBuilder()
    number = b.enum("plain", {"LAST": -1})
    if flagged:
        signed = b.enum("signed", {"BELOW": -2}, signed=True)
    types = Btf(b.blob())
    assert types.constants(number) == {"LAST": expected}
    if flagged:
        assert types.constants(signed) == {"BELOW": -2}


def test_find_takes_the_largest():
    b = BtfBuilder()
    b.integer("int", 4)
    image = bytes(100) + b.blob() + bytes(50) + kernel_btf().blob() + bytes(100)
    assert btf.find(image).aggregates("task_struct")


def header(type_len=0, str_len=1, **changes):
    values = {"magic": 0xEB9F, "version": 1, "hdr_len": 24, "type_off": 0, "str_off": type_len} | changes
    return struct.pack(
        "<HBBIIIII",
        values["magic"],
        values["version"],
        0,
        values["hdr_len"],
        values["type_off"],
        type_len,
        values["str_off"],
        str_len,
    )


@pytest.mark.parametrize(
    ("blob", "what"),
    [
        (b"\x9f\xeb\x01\0", "ends in its header"),
        (header(magic=0x1234) + bytes(9), "magic 0x1234"),
        (header(type_len=0xFFFFFFFC) + bytes(9), "4294967"),
        (header(str_len=0xFFFFFFFF) + bytes(9), "sections need"),
        (header(hdr_len=0) + bytes(40), "sections need"),
        (header(type_off=1 << 31) + bytes(9), "sections need"),
        (header(type_len=6) + bytes(9), "sections need"),
        (header(str_len=2) + b"\0x", "begin and end with NUL"),
        (header(type_len=12) + struct.pack("<III", 0, 0, 0) + b"\0", "type 1 is of unknown kind 0"),
        (header(type_len=12) + struct.pack("<III", 0, 31 << 24, 0) + b"\0", "unknown kind 31"),
        (header(type_len=12) + struct.pack("<III", 0, 4 << 24 | 0xFFFF, 0) + b"\0", "type 1 .*ends behind"),
        (header(type_len=8) + struct.pack("<II", 0, 2 << 24) + b"\0", "type 1 .*ends behind"),
    ],
)
def test_damage_is_named(blob, what):
    with pytest.raises(SymbolsMissing, match=what):
        Btf(blob)


def test_bad_references_are_named_where_they_are_followed():
    b = BtfBuilder()
    pointer = b.pointer(77)
    loop = b.typedef("loop", b.count + 1)
    types = Btf(b.blob())
    with pytest.raises(SymbolsMissing, match="type 77 does not exist"):
        types.kind(types.target(pointer))
    with pytest.raises(SymbolsMissing, match="typedef of itself"):
        types.resolve(loop)
