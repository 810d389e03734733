"""The symbol table in Volatility's own format (ISF 6.2.0), from BTF types and kallsyms symbols.

Theory of operation
-------------------
Names follow dwarf2json, which Volatility expects: structs, unions and enums by tag; typedefs and qualifiers
resolved; an anonymous aggregate is ``unnamed_<hash of its content>``; a member without a name is
``unnamed_field_<offset in hex>`` with ``anonymous`` set, and Volatility lifts its members.  One difference:
an anonymous aggregate with a typedef has the name of the typedef (``atomic_t``, ``kernel_cap_t``).

Types are described on demand.  The *full* table has every aggregate.  The *pruned* one has the aggregates in
a list (pruned_types.txt; symbols in pruned_symbols.txt) and those that they contain by value.  A pointer
names its target without including it; dereferencing a target that the pruned table lacks is an error that
names the type.  Every enum that is mentioned is included, because Volatility resolves it with the member.

Known warts
-----------
* Tags are not unique in the kernel (a dozen duplicates among drivers).  The largest definition has the plain
  name, the others a suffix; every reference names the right one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from live.core.errors import SymbolsMissing
from symbols import btf as btf_kinds
from symbols.btf import (
    ENUM,
    ENUM64,
    FLOAT,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    MAX_CHAIN,
    PTR,
    STRUCT,
    TYPEDEF,
    UNION,
    VOID,
    Btf,
)

Json = dict[str, Any]
"""A JSON object of the ISF."""

FORMAT = "6.2.0"
# Volatility's plugins know one producer, and its version tells them what a table contains
# (linux.hidden_modules refuses all others). Our tables follow its conventions, so they name it as the
# producer, and pse as the generator.
PRODUCER = {"name": "dwarf2json", "version": "0.9.0", "generator": "pse"}
_VOID: Json = {"kind": "base", "name": "void"}
_FUNCTION: Json = {"kind": "function"}
_AGGREGATES = frozenset((STRUCT, UNION))
_ENUMS = frozenset((ENUM, ENUM64))
_CHARS = frozenset(("char", "signed char", "unsigned char"))
_ENUM_BASES = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "short unsigned int",
    (2, True): "short int",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "long unsigned int",
    (8, True): "long int",
}


class Types:
    """Converts BTF types to ISF, each once.  Methods raise `SymbolsMissing` if the BTF is damaged."""

    def __init__(self, btf: Btf) -> None:
        """Nothing of ``btf`` is converted yet."""
        self.btf = btf
        self.user_types: dict[str, Json] = {}
        self.enums: dict[str, Json] = {}
        self.base_types: dict[str, Json] = {
            "void": {"size": 0, "signed": False, "kind": "void", "endian": "little"},
            "pointer": {"size": 8, "signed": False, "kind": "int", "endian": "little"},
        }
        self._described: dict[int, Json] = {}
        self._names: dict[int, str] = {}
        self._naming: set[int] = set()
        self._fields_of: dict[int, Json] = {}
        self._typedefs: dict[int, str] | None = None

    def describe(self, number: int, depth: int = 0) -> Json:
        """The ISF type descriptor of a BTF type."""
        known = self._described.get(number)
        if known is not None:
            return known
        if depth > MAX_CHAIN:
            raise SymbolsMissing(
                f"the kernel's BTF is damaged: type {number} refers to itself; build the table from the "
                "kernel's vmlinuz"
            )
        btf = self.btf
        kind = btf.kind(number)
        result: Json
        if kind == VOID:
            result = _VOID
        elif kind in _AGGREGATES:
            result = {"kind": "struct" if kind == STRUCT else "union", "name": self.name(number)}
        elif kind == PTR:
            result = {"kind": "pointer", "subtype": self.describe(btf.target(number), depth + 1)}
        elif kind in (INT, FLOAT):
            result = {"kind": "base", "name": self._base(number, kind)}
        elif kind == btf_kinds.ARRAY:
            element, count = btf.array(number)
            result = {"kind": "array", "count": count, "subtype": self.describe(element, depth + 1)}
        elif kind in _ENUMS:
            result = {"kind": "enum", "name": self._enum(number)}
        elif kind == FWD:
            result = {"kind": "union" if btf.fwd_is_union(number) else "struct", "name": btf.name(number)}
        elif kind in (FUNC, FUNC_PROTO):
            result = _FUNCTION
        else:
            result = self.describe(btf.resolve(number), depth + 1)
        self._described[number] = result
        return result

    def name(self, number: int) -> str:
        """The name in the ISF of a struct, union or enum."""
        name = self._names.get(number)
        if name is None:
            name = self._names[number] = self._name(number)
        return name

    def _name(self, number: int) -> str:
        name = self.btf.name(number)
        if name:
            same = self.btf.aggregates(name)
            if len(same) > 1:
                best = max(same, key=lambda one: (self.btf.size(one), -one))
                if best != number:
                    return f"{name}__{same.index(number) + 1}"
            return name
        if self._typedefs is None:
            self._typedefs = {}
            for one in self.btf.numbers(TYPEDEF):
                self._typedefs.setdefault(self.btf.target(one), self.btf.name(one))
        name = self._typedefs.get(number, "")
        if name and not self.btf.aggregates(name):
            return name
        if number in self._naming:  # only a hostile blob embeds a type in itself
            return f"unnamed_{number:016x}"
        if len(self._naming) > MAX_CHAIN:
            raise SymbolsMissing("the kernel's BTF is damaged: types are nested too deeply")
        self._naming.add(number)
        kind = self.btf.kind(number)
        content: Any = self.btf.constants(number) if kind in _ENUMS else self._fields(number)
        text = json.dumps([kind, self.btf.size(number), content])
        self._naming.discard(number)
        return "unnamed_" + hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]

    def _base(self, number: int, kind: int) -> str:
        name = self.btf.name(number)
        if name not in self.base_types:
            signed, boolean = self.btf.integer(number) if kind == INT else (True, False)
            word = "float" if kind == FLOAT else "bool" if boolean else "char" if name in _CHARS else "int"
            size = self.btf.size(number)
            self.base_types[name] = {"size": size, "signed": signed, "kind": word, "endian": "little"}
        return name

    def _enum(self, number: int) -> str:
        name = self.name(number)
        if name not in self.enums:
            constants = self.btf.constants(number)
            size = self.btf.size(number)
            base = _ENUM_BASES.get((size, min(constants.values(), default=0) < 0), "unsigned int")
            if base not in self.base_types:
                signed = base in ("signed char", "short int", "int", "long int")
                word = "char" if base in _CHARS else "int"
                self.base_types[base] = {"size": size, "signed": signed, "kind": word, "endian": "little"}
            self.enums[name] = {"size": size, "base": base, "constants": constants}
        return name

    def _fields(self, number: int) -> Json:
        known = self._fields_of.get(number)
        if known is not None:
            return known
        fields: Json = {}
        for member in self.btf.members(number):
            offset, bit = divmod(member.offset, 8)
            descriptor = self.describe(member.type)
            name = member.name
            if member.bits:
                if not name:
                    continue  # padding
                offset, bit = self._storage(member.type, member.offset, member.bits)
                descriptor = {
                    "kind": "bitfield",
                    "bit_position": bit,
                    "bit_length": member.bits,
                    "type": descriptor,
                }
            if name:
                fields[name] = {"type": descriptor, "offset": offset}
                continue
            name = f"unnamed_field_{offset:x}"
            while name in fields:
                name += "_"
            fields[name] = {"type": descriptor, "offset": offset}
            if self.btf.kind(self.btf.resolve(member.type)) in _AGGREGATES:
                fields[name]["anonymous"] = True
        self._fields_of[number] = fields
        return fields

    def _storage(self, type_number: int, offset: int, bits: int) -> tuple[int, int]:
        """(byte offset of the storage unit, bit position in it) of a bit field at ``offset`` bits."""
        resolved = self.btf.resolve(type_number)
        size = self.btf.size(resolved) if self.btf.kind(resolved) in (INT, *_ENUMS) else 0
        unit = size * 8
        if unit and offset // unit == (offset + bits - 1) // unit:
            return offset // unit * size, offset % unit
        return offset // 8, offset % 8  # a packed bit field that spans storage units

    def define(self, numbers: Iterable[int]) -> None:
        """Add these aggregates, and those that they contain by value, to `user_types` and `enums`."""
        btf = self.btf
        todo = list(numbers)
        done: set[int] = set()
        while todo:
            number = todo.pop()
            if number in done:
                continue
            done.add(number)
            kind = btf.kind(number)
            if kind in _ENUMS:
                self._enum(number)
            if kind not in _AGGREGATES:
                continue
            name = self.name(number)
            self.user_types[name] = {
                "kind": "struct" if kind == STRUCT else "union",
                "size": btf.size(number),
                "fields": self._fields(number),
            }
            for member in btf.members(number):
                held = self._held(member.type)
                if held is not None and held not in done:
                    todo.append(held)

    def _held(self, number: int) -> int | None:
        """The struct or union that a type is or is an array of, else None."""
        for _ in range(MAX_CHAIN):
            number = self.btf.resolve(number)
            kind = self.btf.kind(number)
            if kind == btf_kinds.ARRAY:
                number = self.btf.array(number)[0]
                continue
            return number if kind in _AGGREGATES else None
        return None


# The schema allows only dwarf, symtab and system-map as kinds; `name` has the real source.
SOURCES: Json = {
    "linux": {
        "symbols": [{"kind": "symtab", "name": "kallsyms"}],
        "types": [{"kind": "dwarf", "name": "BTF"}],
    }
}


def document(types: Types, symbols: dict[str, Json], banner: str) -> Json:
    """The complete ISF; ``linux_banner`` gets the banner, by which Volatility finds the table."""
    banner_bytes = banner.encode("latin-1") + b"\0"
    if "linux_banner" in symbols:
        char: Json = {"kind": "base", "name": "char"}
        types.base_types.setdefault("char", {"size": 1, "signed": True, "kind": "char", "endian": "little"})
        symbols["linux_banner"] = symbols["linux_banner"] | {
            "type": {"kind": "array", "count": len(banner_bytes), "subtype": char},
            "constant_data": base64.b64encode(banner_bytes).decode(),
        }
    return {
        "metadata": {"producer": PRODUCER, "format": FORMAT} | SOURCES,
        "base_types": types.base_types,
        "user_types": types.user_types,
        "enums": types.enums,
        "symbols": symbols,
    }
