"""The table: what it says of types and symbols, and that Volatility accepts it."""

import base64
import json

import pytest
from volatility3 import schemas

from live.core.errors import SymbolsMissing
from symbols.btf import STRUCT, Btf
from symbols.isf import Types
from symbols.kallsyms import decode
from symbols.table import KernelTable

from .build import BANNER, LAYOUTS, LINK_TEXT, BtfBuilder, Plan, image_of, kernel_btf, link, symbols_of


def table_of(plan):
    kallsyms = decode(image_of(plan), plan.va, plan.va)
    return KernelTable(Btf(kernel_btf().blob()), kallsyms, plan.shift, plan.banner)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_kallsyms_in_each_layout(layout):
    plan = Plan(layout=layout)
    decoded = decode(image_of(plan), plan.va, plan.va)
    assert list(zip(decoded.values, decoded.kinds, decoded.names, strict=True)) == symbols_of(plan)
    assert decoded.encoding == layout.encoding
    assert ("kallsyms_seqs_of_names" in decoded.tables) == layout.seqs
    assert image_of(plan)[decoded.tables["kallsyms_num_syms"] - plan.va :][:4] == len(decoded.names).to_bytes(
        4, "little"
    )


@pytest.mark.parametrize("full", [False, True], ids=["pruned", "full"])
def test_volatility_accepts_it(full):
    document = json.loads(json.dumps(table_of(Plan()).isf(full=full)))
    assert schemas.validate(document, use_cache=False)


def test_contents():
    document = table_of(Plan()).isf(full=True)
    task = document["user_types"]["task_struct"]
    assert task["kind"] == "struct"
    assert task["size"] == 128
    assert task["fields"]["tasks"] == {"type": {"kind": "struct", "name": "list_head"}, "offset": 8}
    assert task["fields"]["usage"] == {"type": {"kind": "struct", "name": "atomic_t"}, "offset": 4}
    assert task["fields"]["comm"]["type"] == {
        "kind": "array",
        "count": 16,
        "subtype": {"kind": "base", "name": "char"},
    }
    assert task["fields"]["type"]["type"] == {"kind": "enum", "name": "pid_type"}
    lifted = task["fields"]["unnamed_field_30"]
    assert lifted["anonymous"] is True
    assert lifted["type"]["name"].startswith("unnamed_")
    assert set(document["user_types"][lifted["type"]["name"]]["fields"]) == {"low", "high"}
    assert document["base_types"]["pointer"] == {
        "size": 8,
        "signed": False,
        "kind": "int",
        "endian": "little",
    }
    symbols = document["symbols"]
    assert symbols["init_task"] == {
        "address": link("init_task"),
        "type": {"kind": "struct", "name": "task_struct"},
    }
    assert symbols["_text"]["address"] == LINK_TEXT
    assert symbols["current_task"]["address"] == 0x1FBC0
    assert symbols["tk_core"]["type"]["name"].startswith("unnamed_")
    assert base64.b64decode(symbols["linux_banner"]["constant_data"]) == BANNER.encode() + b"\0"


def test_pruned_is_part_of_full():
    table = table_of(Plan())
    pruned, full = table.isf(full=False), table.isf(full=True)
    for kind in ("user_types", "enums", "base_types"):
        assert pruned[kind].items() <= full[kind].items()
    for name, symbol in pruned["symbols"].items():
        assert symbol.items() <= full["symbols"][name].items()
    assert {"function_0", "twin", "init_task"} <= set(pruned["symbols"])


def test_bitfields_keep_to_their_storage_unit():
    b = BtfBuilder()
    integer = b.integer("unsigned int", 4)
    b.struct(
        "flags",
        12,
        ("in_execve", integer, 1 << 24 | 34),
        ("crossing", integer, 12 << 24 | 60),
        ("", integer, 2 << 24 | 72),
        flag=True,
    )
    types = Types(Btf(b.blob()))
    types.define(types.btf.numbers(STRUCT))
    base = {"kind": "base", "name": "unsigned int"}
    assert types.user_types["flags"]["fields"] == {
        "in_execve": {
            "type": {"kind": "bitfield", "bit_position": 2, "bit_length": 1, "type": base},
            "offset": 4,
        },
        "crossing": {
            "type": {"kind": "bitfield", "bit_position": 4, "bit_length": 12, "type": base},
            "offset": 7,
        },
    }


def test_two_structs_of_one_name_stay_apart():
    b = BtfBuilder()
    integer = b.integer("int", 4)
    small = b.struct("node", 4, ("a", integer, 0))
    large = b.struct("node", 8, ("b", integer, 32))
    b.struct("user", 12, ("small", small, 0), ("large", large, 32))
    types = Types(Btf(b.blob()))
    types.define(types.btf.numbers(STRUCT))
    fields = types.user_types["user"]["fields"]
    assert fields["large"]["type"]["name"] == "node"
    assert set(types.user_types[fields["small"]["type"]["name"]]["fields"]) == {"a"}
    assert set(types.user_types["node"]["fields"]) == {"b"}


def test_cycles_end():
    b = BtfBuilder()
    pointer = b.pointer(b.count + 1)
    array = b.array(b.count + 1, 3)
    b.struct("", 8, ("self", b.count + 1, 0))
    types = Types(Btf(b.blob()))
    types.define(types.btf.numbers(STRUCT))
    assert len(types.user_types) == 1
    for number in (pointer, array):
        with pytest.raises(SymbolsMissing, match="refers to itself"):
            types.describe(number)
