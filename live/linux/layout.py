"""Layouts of C types: members looked up once in an ISF, compiled so that reading is one `struct` unpack.

Theory of operation
-------------------
A `SymbolTable` wraps Volatility's own reader of ISF files, so it reads any ISF: ours, made from the
guest's BTF and kallsyms, or one that dwarf2json made from DWARF.  A `Record` holds the members of
one C type that a reader needs.  Compiling it looks up offsets, sizes and signedness and yields one
`struct.Struct` whose pad bytes skip everything else.  A hundred tasks are then a hundred unpacks
and not one Volatility object (2.5 ms per task).

Rules
-----
* Differences between kernels are decided by member *presence*, newest name first, never by the
  version.  A `Field` therefore lists alternative names.
* A member that no name finds raises `SymbolsMissing`, unless the field has a ``default``.
* A bit field is read as its storage unit; `Member.shift` and `Member.mask` extract it.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.framework import contexts, exceptions
from volatility3.framework.symbols import intermed

from live.core.errors import SymbolsMissing

_CODES = {1: "b", 2: "h", 4: "i", 8: "q"}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a C type: ``offset`` and ``size`` in bytes (of the storage unit for a bit field).

    ``code`` is the `struct` format of the value.  ``shift`` and ``mask`` extract a bit field; ``mask`` is
    0 for other members.
    """

    offset: int
    size: int
    code: str
    shift: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """A member to read: dotted ``paths`` in order of preference, and the value if none of them exists.

    ``default`` None: the member is required.
    """

    paths: tuple[str, ...]
    default: int | bytes | None = None


def field(*paths: str, default: int | bytes | None = None) -> Field:
    """A `Field` from its alternative paths, newest kernel first."""
    return Field(paths, default)


class SymbolTable:
    """Types and link-time symbol addresses of one kernel, from an ISF file."""

    def __init__(self, path: Path | str) -> None:
        """Load the ISF at ``path`` (``.json``, ``.json.xz``, ``.json.gz``, ``.json.bz2``).

        Raises `SymbolsMissing` if it is not a usable ISF.
        """
        url = Path(path).resolve().as_uri()
        try:
            # validate=False: the schema check needs jsonschema and takes longer than everything else
            # here; our own tables are checked by tests/symbols.
            self._table = intermed.IntermediateSymbolTable(
                contexts.Context(), "pse", "kernel", isf_url=url, validate=False
            )
        except (exceptions.VolatilityException, ValueError, OSError, KeyError, EOFError) as error:
            raise SymbolsMissing(
                f"{path} is no usable symbol table ({error}); delete it and run again to have it made anew"
            ) from error
        self.path = Path(path)
        self._types: dict[str, Any] = {}

    def symbol(self, *names: str) -> int | None:
        """Link-time virtual address (no KASLR shift) of the first of ``names`` that exists, else None."""
        for name in names:
            try:
                return int(self._table.get_symbol(name).address)
            except exceptions.SymbolError:
                continue
        return None

    def address(self, *names: str) -> int:
        """Like `symbol`.  Raises `SymbolsMissing` if none of ``names`` exists."""
        address = self.symbol(*names)
        if address is None:
            raise SymbolsMissing(
                f"the symbol table {self.path.name} has no {' or '.join(names)}; "
                "rebuild it with: pse symbols build"
            )
        return address

    def size(self, type_name: str) -> int:
        """Size of a C type in bytes.  Raises `SymbolsMissing`."""
        return int(self._type(type_name).size)

    def has(self, type_name: str, path: str) -> bool:
        """Whether a C type has the member at the dotted ``path``."""
        return self.member(type_name, path) is not None

    def offset(self, type_name: str, *paths: str) -> int:
        """Byte offset of the first of the dotted ``paths`` that exists.  Raises `SymbolsMissing`."""
        for path in paths:
            found = self.member(type_name, path)
            if found is not None:
                return found.offset
        raise SymbolsMissing(
            f"struct {type_name} has no member {' or '.join(paths)} in {self.path.name}: "
            "this kernel is laid out in a way that is not known yet; please report its banner"
        )

    def member(self, type_name: str, path: str) -> Member | None:
        """Resolve a dotted member path; None if the type or a member does not exist."""
        offset, template = 0, self._find(type_name)
        for name in path.split("."):
            if template is None:
                return None
            if "members" not in template.vol:
                template = self._find(template.vol.type_name)
                if template is None:
                    return None
            found = template.vol.members.get(name)
            if found is None:
                return None
            offset += found[0]
            template = found[1]
        return _member(offset, template) if template is not None else None

    def inside(self, symbol: str, path: str) -> Member | None:
        """Resolve a dotted member path in the type of a global variable; None if there is no such."""
        try:
            template = self._table.get_symbol(symbol).type
        except exceptions.SymbolError:
            return None
        return self.member(template.vol.type_name, path) if template is not None else None

    def has_type(self, type_name: str) -> bool:
        """Whether there is a C type of this name."""
        return self._find(type_name) is not None

    def _find(self, type_name: str) -> Any:
        name = type_name.rpartition("!")[2]
        if name not in self._types:
            try:
                self._types[name] = self._table.get_type(name)
            except exceptions.SymbolError:
                self._types[name] = None
        return self._types[name]

    def _type(self, type_name: str) -> Any:
        found = self._find(type_name)
        if found is None:
            raise SymbolsMissing(
                f"the symbol table {self.path.name} has no type {type_name}; "
                "rebuild it with: pse symbols build"
            )
        return found

    def record(self, type_name: str, fields: Sequence[Field]) -> Record:
        """Compile ``fields`` of one C type into a `Record`.  Raises `SymbolsMissing`."""
        members: list[Member | int | bytes] = []
        for wanted in fields:
            for path in wanted.paths:
                found = self.member(type_name, path)
                if found is not None:
                    members.append(found)
                    break
            else:
                if wanted.default is None:
                    self.offset(type_name, *wanted.paths)  # raises, with the message for it
                members.append(wanted.default if wanted.default is not None else 0)
        return Record(members)


def _member(offset: int, template: Any) -> Member:
    """The `Member` that a Volatility template at ``offset`` describes."""
    vol = template.vol
    if "start_bit" in vol:
        base = vol.base_type
        width = vol.end_bit - vol.start_bit
        return Member(offset, base.size, _CODES[base.size].upper(), vol.start_bit, (1 << width) - 1)
    if "data_format" in vol and "subtype" not in vol:
        code = _CODES.get(vol.data_format.length)
        if code is not None:
            return Member(offset, vol.data_format.length, code if vol.data_format.signed else code.upper())
    if "count" in vol and vol.subtype.vol.get("data_format") is not None:
        size = vol.count * vol.subtype.size
        return Member(offset, size, f"{size}s")
    if "subtype" in vol and "count" not in vol:
        return Member(offset, 8, "Q")  # a pointer
    # A struct or an enum: raw bytes, unless it has the size of a number (atomic_t, kuid_t and
    # refcount_t wrap one).
    try:
        size = template.size
    except exceptions.SymbolError:
        size = 0
    return Member(offset, size, _CODES.get(size, "q").upper() if size in _CODES else f"{size}s")


class Record:
    """Members of one C type, read by a single unpack.

    ``start`` is the byte offset of the first member in memory; ``struct`` spans from there to the end of the
    last.  It unpacks in memory order; `arranger` brings the values into the order of the fields.
    """

    __slots__ = ("_bits", "_constants", "_order", "_slots", "start", "struct")

    def __init__(self, members: Sequence[Member | int | bytes]) -> None:
        """Compile ``members``; a number or bytes among them is the value of a member that does not exist."""
        present = sorted({(m.offset, m.size, m.code) for m in members if isinstance(m, Member)})
        self.start = present[0][0] if present else 0
        form, at = "<", self.start
        slots: dict[tuple[int, int, str], int] = {}
        overlapping: list[tuple[int, int, str]] = []
        for entry in present:
            offset, size, code = entry
            if offset < at:
                overlapping.append(entry)  # such as bit fields with storage units of different sizes
                continue
            form += f"{offset - at}x{code}" if offset > at else code
            slots[entry] = len(slots)
            at = offset + size
        if overlapping:
            raise SymbolsMissing(f"members overlap: {overlapping}")
        self.struct = struct.Struct(form)
        self._bits: list[tuple[int, int, int, int]] = []
        self._slots = slots
        order: list[int] = []
        constants: list[int | bytes] = []
        for position, member in enumerate(members):
            if isinstance(member, Member):
                order.append(slots[(member.offset, member.size, member.code)])
                if member.mask:
                    self._bits.append((position, order[-1], member.shift, member.mask))
            else:
                order.append(len(slots) + len(constants))
                constants.append(member)
        self._constants = tuple(constants)
        self._order = order

    @property
    def end(self) -> int:
        """Byte offset behind the last member."""
        return self.start + self.struct.size

    def position(self, wanted: int) -> int:
        """Index of field number ``wanted`` in the tuple as unpacked, in memory order."""
        return self._order[wanted]

    @property
    def needs_arranging(self) -> bool:
        """Whether the values in memory order differ from those in the order of the fields."""
        return bool(self._constants or self._bits) or self._order != list(range(len(self._order)))

    def arranger(self) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """A function that orders unpacked values like the fields, adds defaults and extracts bit fields."""
        constants, bits = self._constants, self._bits
        # Defaults and bit fields are appended to the unpacked values; one itemgetter then picks all.
        order = list(self._order)
        behind = len(set(self._slots.values())) + len(constants)
        for number, (position, _, _, _) in enumerate(bits):
            order[position] = behind + number
        pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
        if len(order) == 1:
            only = order[0]
            pick = lambda values: (values[only],)  # noqa: E731 -- itemgetter of one item gives no tuple
        else:
            pick = operator.itemgetter(*order)
        if bits:
            return lambda values: pick(
                (*values, *constants, *[values[slot] >> shift & mask for _, slot, shift, mask in bits])
            )
        return (lambda values: pick(values + constants)) if constants else pick
