"""BTF, the kernel's own type information: indexed at once, each type decoded on demand.

Theory of operation
-------------------
A BTF blob is a header, a section of types (a stream of records of different lengths, numbered from 1) and a
section of NUL-terminated strings.  Types are referred to by number, strings by offset
(Documentation/bpf/btf.rst).  The stream has no index, so one pass over the section, unpacked to 32-bit words,
notes where each record begins.  The pass is also the check: a record that leaves the section, or of unknown
kind, is an error.  Types are then decoded one by one.  References are checked when they are followed, and
chains of references are bounded, since those of a hostile blob may form a cycle.

Known warts
-----------
* Blobs of pahole before 1.24 have no sign flag for enums; their values are s32.  If no enum of a blob has the
  flag, all are read as signed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from live.core.errors import SymbolsMissing
from symbols.window import Bytes

(
    INT,
    PTR,
    ARRAY,
    STRUCT,
    UNION,
    ENUM,
    FWD,
    TYPEDEF,
    VOLATILE,
    CONST,
    RESTRICT,
    FUNC,
    FUNC_PROTO,
    VAR,
    DATASEC,
) = range(1, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)
VOID = 0

MAGIC = re.compile(rb"\x9f\xeb\x01\x00[\x18-\x40]\0\0\0")
MAX_SIZE = 64 << 20
MAX_STRING = 1024
"""Bytes; the kernel's limit for a name is 512 (KSYM_NAME_LEN)."""
MAX_TYPES = 4 << 20
MAX_CHAIN = 64

# Words after the three of every `struct btf_type`: a fixed number, and for each of its `vlen` entries.
_FIXED = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_EACH = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
_MODIFIERS = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
_INT_SIGNED, _INT_BOOL = 1, 4


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union: ``offset`` in bits; ``bits`` is 0 unless it is a bit field."""

    name: str
    type: int
    offset: int
    bits: int


class Btf:
    """The types of a BTF blob, by number.  Every method raises `SymbolsMissing` if the blob is damaged."""

    def __init__(self, data: Bytes) -> None:
        """Index the blob at the start of ``data``; bytes after it are ignored.

        Raises `SymbolsMissing` if it is no BTF, or damaged.
        """
        header = bytes(data[:24])
        if len(header) < 24:
            raise _bad("it ends in its header")
        magic, version, _, length, type_at, type_len, str_at, str_len = struct.unpack("<HBBIIIII", header)
        if magic != 0xEB9F or version != 1:
            raise _bad(f"magic {magic:#x}, version {version}")
        self.length = length + max(type_at + type_len, str_at + str_len)
        if self.length > min(MAX_SIZE, len(data)) or length < 24 or type_len % 4 or not str_len:
            raise _bad(f"its sections need {self.length} bytes, {len(data)} are there")
        at = length + type_at
        self._words: tuple[int, ...] = struct.unpack_from(f"<{type_len // 4}I", data, at)
        self._strings = bytes(data[length + str_at : length + str_at + str_len])
        if self._strings[0] or self._strings[-1]:
            raise _bad("its string section does not begin and end with NUL")
        self._at = self._index()
        self._by_name: dict[str, list[int]] | None = None
        self._signed_enums: bool | None = None
        self._integers: dict[str, int] | None = None

    def __len__(self) -> int:
        """Number of types, including void (0)."""
        return len(self._at)

    def _index(self) -> list[int]:
        words, end = self._words, len(self._words)
        extra = [(_FIXED.get(kind, 0), _EACH.get(kind, 0)) for kind in range(32)]
        places, kinds = [0], bytearray(1)
        append, append_kind = places.append, kinds.append
        at = 0
        try:
            while at < end:
                if len(places) > MAX_TYPES:
                    raise _bad(f"it has more than {MAX_TYPES} types")
                append(at)
                info = words[at + 1]
                kind = info >> 24 & 0x1F
                append_kind(kind)
                fixed, each = extra[kind]
                at += 3 + fixed + each * (info & 0xFFFF) if each else 3 + fixed
                if not 0 < kind <= ENUM64:
                    raise _bad(f"type {len(places) - 1} is of unknown kind {kind}")
        except IndexError:
            raise _bad(f"type {len(places) - 1} ends behind its section") from None
        if at != end:
            raise _bad(f"type {len(places) - 1} ends behind its section")
        self._kinds = bytes(kinds)
        return places

    def _place(self, number: int) -> int:
        if not 0 < number < len(self._at):
            raise _bad(f"type {number} does not exist, there are {len(self._at) - 1}")
        return self._at[number]

    def _string(self, offset: int) -> str:
        if not offset:
            return ""
        if offset >= len(self._strings):
            raise _bad(f"string {offset} does not exist")
        end = self._strings.find(b"\0", offset, offset + MAX_STRING)
        if end < 0:
            raise _bad(f"string {offset} is longer than {MAX_STRING} bytes")
        return self._strings[offset:end].decode("utf-8", "replace")

    def kind(self, number: int) -> int:
        """Kind of a type, ``BTF_KIND_*``; 0 is void."""
        if not 0 <= number < len(self._kinds):
            self._place(number)
        return self._kinds[number]

    def name(self, number: int) -> str:
        """Name of a type; "" if it has none."""
        return self._string(self._words[self._place(number)]) if number else ""

    def size(self, number: int) -> int:
        """Size in bytes of an INT, STRUCT, UNION, ENUM, ENUM64, FLOAT or DATASEC."""
        return self._words[self._place(number) + 2]

    def target(self, number: int) -> int:
        """The type to which a PTR, modifier, FUNC or VAR refers."""
        return self._words[self._place(number) + 2]

    def array(self, number: int) -> tuple[int, int]:
        """(element type, count) of an ARRAY."""
        at = self._place(number)
        return self._words[at + 3], self._words[at + 5]

    def integer(self, number: int) -> tuple[bool, bool]:
        """(signed, boolean) of an INT."""
        encoding = self._words[self._place(number) + 3] >> 24
        return bool(encoding & _INT_SIGNED), bool(encoding & _INT_BOOL)

    def fwd_is_union(self, number: int) -> bool:
        """Whether a FWD declares a union."""
        return bool(self._words[self._place(number) + 1] >> 31)

    def members(self, number: int) -> list[Member]:
        """Members of a STRUCT or UNION, in order."""
        at = self._place(number)
        words = self._words
        info = words[at + 1]
        bitfields = info >> 31
        result = []
        for one in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            offset = words[one + 2]
            bits = offset >> 24 if bitfields else 0
            result.append(
                Member(
                    self._string(words[one]), words[one + 1], offset & 0xFFFFFF if bitfields else offset, bits
                )
            )
        return result

    def constants(self, number: int) -> dict[str, int]:
        """Enumerators of an ENUM or ENUM64: name -> value."""
        at = self._place(number)
        words = self._words
        info = words[at + 1]
        count = info & 0xFFFF
        signed = bool(info >> 31)
        result = {}
        if info >> 24 & 0x1F == ENUM64:
            for one in range(at + 3, at + 3 + 3 * count, 3):
                value = words[one + 1] | words[one + 2] << 32
                result[self._string(words[one])] = value - (1 << 64) if signed and value >> 63 else value
            return result
        signed = signed or not self._has_signed_enums()
        for one in range(at + 3, at + 3 + 2 * count, 2):
            value = words[one + 1]
            result[self._string(words[one])] = value - (1 << 32) if signed and value >> 31 else value
        return result

    def _has_signed_enums(self) -> bool:
        if self._signed_enums is None:
            words, at = self._words, self._at
            self._signed_enums = any(words[at[number] + 1] >> 31 for number in self.numbers(ENUM, ENUM64))
        return self._signed_enums

    def resolve(self, number: int) -> int:
        """The type without typedefs, qualifiers and type tags."""
        for _ in range(MAX_CHAIN):
            if self.kind(number) not in _MODIFIERS:
                return number
            number = self.target(number)
        raise _bad(f"type {number} is a typedef of itself")

    def numbers(self, *kinds: int) -> Iterator[int]:
        """Numbers of all types of these kinds, ascending."""
        wanted = re.compile(b"[" + b"".join(b"\\x%02x" % kind for kind in kinds) + b"]")
        return (match.start() for match in wanted.finditer(self._kinds))

    def aggregates(self, name: str) -> list[int]:
        """Numbers of the structs, unions and enums of this name, ascending; usually one."""
        if self._by_name is None:
            names: dict[str, list[int]] = {}
            for number in self.numbers(STRUCT, UNION, ENUM, ENUM64):
                if self._words[self._at[number]]:
                    names.setdefault(self.name(number), []).append(number)
            self._by_name = names
        return self._by_name.get(name, [])

    def integer_named(self, name: str) -> int | None:
        """Number of the INT of this name, or None."""
        if self._integers is None:
            self._integers = {self.name(number): number for number in self.numbers(INT)}
        return self._integers.get(name)

    def variables(self) -> dict[str, int]:
        """Name -> type of the variables that the blob describes, usually the per-CPU ones."""
        return {self.name(number): self.target(number) for number in self.numbers(VAR)}


def find(image: Bytes) -> Btf:
    """The largest BTF blob in ``image``, which is the kernel's own.  Raises `SymbolsMissing`."""
    best: Btf | None = None
    fault: SymbolsMissing | None = None
    for number, match in enumerate(MAGIC.finditer(image)):
        if number >= MAX_CHAIN:
            break
        try:
            found = Btf(memoryview(image)[match.start() :])
        except SymbolsMissing as error:
            fault = error
            continue
        if best is None or len(found) > len(best):
            best = found
    if best is not None and len(best) > 1:
        return best
    raise fault or SymbolsMissing(
        "this kernel carries no BTF type information (CONFIG_DEBUG_INFO_BTF is off): "
        "give a symbol table made from its debug package to Volatility by hand"
    )


def _bad(what: str) -> SymbolsMissing:
    return SymbolsMissing(
        f"the kernel's BTF is damaged: {what}; read the memory again, or build the table from the "
        "kernel's vmlinuz"
    )
