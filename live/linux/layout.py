"""Offsets, compiled once from a Volatility symbol table, so that reading is one `struct` unpack.

Theory of operation
-------------------
A `SymbolTable` wraps Volatility's own reader of ISF files, so any table serves: ours, made from
the guest's BTF and kallsyms, or one that dwarf2json made from DWARF.  A `Record` names the members
of one C type that a reader wants; compiling it looks up offsets, sizes and signedness, and yields
one `struct.Struct` whose pad bytes skip everything else.  A hundred tasks are then a hundred
unpacks, without one Volatility object (which costs 2.5 ms a task).

Rules
-----
* What differs between kernels is decided by member *presence*, newest name first, never by a
  version number.  A `Field` therefore lists alternative spellings.
* A member that no spelling finds raises `SymbolsMissing`, unless the field has a ``default``.
* Bit fields are read as their storage unit; `Field.bit` and the compiled mask tell them apart.
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
    """Where a member lives in its C type: ``offset`` and ``size`` in bytes.

    ``code`` is the `struct` format of the value; ``shift`` and ``mask`` apply to bit fields
    (``mask`` is 0 for ordinary members).
    """

    offset: int
    size: int
    code: str
    shift: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """A wanted member: dotted ``paths`` in order of preference, and what stands in if none exists.

    ``default`` None means that the reader cannot do without it.
    """

    paths: tuple[str, ...]
    default: int | bytes | None = None


def field(*paths: str, default: int | bytes | None = None) -> Field:
    """A `Field` from its spellings, newest kernel first."""
    return Field(paths, default)


class SymbolTable:
    """Types and link-time symbol addresses of one kernel, from an ISF file.

    Raises `SymbolsMissing` when the file is no usable ISF.
    """

    def __init__(self, path: Path | str) -> None:
        """Load the ISF at ``path`` (``.json``, ``.json.xz``, ``.json.gz``, ``.json.bz2``)."""
        url = Path(path).resolve().as_uri()
        try:
            # validate=False: checking against the schema needs jsonschema and takes longer than
            # everything else; tables are validated where they are made.
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
        """Link-time virtual address of the first of ``names`` that exists, without KASLR shift; or None."""
        for name in names:
            try:
                return int(self._table.get_symbol(name).address)
            except exceptions.SymbolError:
                continue
        return None

    def address(self, *names: str) -> int:
        """Like `symbol`, but a missing symbol raises `SymbolsMissing`."""
        address = self.symbol(*names)
        if address is None:
            raise SymbolsMissing(
                f"the symbol table {self.path.name} has no {' or '.join(names)}; "
                "rebuild it with: pse symbols build"
            )
        return address

    def size(self, type_name: str) -> int:
        """Size of a C type in bytes."""
        return int(self._type(type_name).size)

    def has(self, type_name: str, path: str) -> bool:
        """Whether a type has the member at the dotted ``path``."""
        return self.member(type_name, path) is not None

    def offset(self, type_name: str, *paths: str) -> int:
        """Byte offset of the first of ``paths`` that exists in ``type_name``."""
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
        """Compile the wanted members of one C type into a `Record`."""
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
    """Turn a Volatility template into a `Member`."""
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
    # A struct or an enum: only its place is of interest, unless it has the size of a number
    # (atomic_t, kuid_t, refcount_t wrap one).
    try:
        size = template.size
    except exceptions.SymbolError:
        size = 0
    return Member(offset, size, _CODES.get(size, "q").upper() if size in _CODES else f"{size}s")


class Record:
    """The wanted members of one C type as a single unpack.

    ``start`` is the byte offset of the first wanted member, ``struct`` spans from there to the
    end of the last.  What it unpacks is in the order of memory; `arranger` makes of it the values in
    the order in which the fields were asked for.
    """

    __slots__ = ("_bits", "_constants", "_order", "_slots", "start", "struct")

    def __init__(self, members: Sequence[Member | int | bytes]) -> None:
        """Compile ``members``; a number or bytes in it is a constant that stands for a missing member."""
        present = sorted({(m.offset, m.size, m.code) for m in members if isinstance(m, Member)})
        self.start = present[0][0] if present else 0
        form, at = "<", self.start
        slots: dict[tuple[int, int, str], int] = {}
        overlapping: list[tuple[int, int, str]] = []
        for entry in present:
            offset, size, code = entry
            if offset < at:
                overlapping.append(entry)  # e.g. two bit fields with storage units of other widths
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
        """Byte offset behind the last wanted member."""
        return self.start + self.struct.size

    def position(self, wanted: int) -> int:
        """Where the value of the ``wanted``-th field stands in the tuple as unpacked."""
        return self._order[wanted]

    @property
    def needs_arranging(self) -> bool:
        """Whether the values, as they lie in memory, are not yet those that were asked for."""
        return bool(self._constants or self._bits) or self._order != list(range(len(self._order)))

    def arranger(self) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """What brings unpacked values into the order asked for, adds defaults, takes bit fields apart."""
        constants, bits = self._constants, self._bits
        # Defaults and bit fields follow the unpacked values; then everything is picked in one go.
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
