"""One kernel's types and symbols together: what `symbols.isf` writes and `symbols.alive` looks with."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from importlib import resources

from symbols.btf import ENUM, ENUM64, STRUCT, UNION, Btf
from symbols.globals import DECLARATIONS
from symbols.isf import Json, Types, document
from symbols.kallsyms import KERNEL_SPACE, Kallsyms

_VOID: Json = {"kind": "base", "name": "void"}
_FUNCTIONS = frozenset("tTwWiV")
# linux.check_syscall counts the __syscall_meta__ symbols: they stay.
_NOT_CODE = re.compile(
    r"__pfx_|__SCK__|__UNIQUE_ID_|event_(?:enter|exit)__|types__|args__|__flags_|print_fmt_|__BTF_ID_"
    r"|trace_event_fields_|__?TRACE_SYSTEM|TRACE_SYSTEM|__event_|__ksymtab_|__kstrtab"
)
# Padding in front of functions, the export tables, and what the compiler numbers: nobody asks for them by
# name.
_NOISE = re.compile(
    r"__pfx_|__ksymtab_|__kstrtab|__crc_|__param_|__setup_|__initcall_|__UNIQUE_ID_|__func__|__already_done|__print_once"
    r"|__warned|_entry\.|_entry_ptr|__key\.|_rs\.|descriptor\.|__msg\.|__compoundliteral|__compound_literal"
    r"|event_|__event_|__p_syscall_meta_|types__|args__|trace_event_|__bpf_trace|str__|print_fmt_"
    r"|__tpstrtab_|__tp_map|__SCK__|__SCT__|__SCT_|\.L|__export_symbol_|__bpf_kfunc|__quirk|__flags_|__BTF_ID_|(?:__)?TRACE_SYSTEM|security_hook_active|.*\.\d+$"
)
_DECLARATION = re.compile(r"(struct|union)?\s*(\{[^}]*\}|[\w ]*\w)\s*((?:\*\s*)*)(?:\[(\d*)\])?\s*")


class KernelTable:
    """BTF and kallsyms of one kernel; addresses as linked, that is without the KASLR shift."""

    def __init__(self, btf: Btf, kallsyms: Kallsyms, kaslr_shift: int, banner: str) -> None:
        """``kallsyms`` holds run-time addresses, ``kaslr_shift`` above the linked ones."""
        self.btf = btf
        self.banner = banner
        self.kinds: dict[str, str] = {}
        self.addresses: dict[str, int] = {}
        addresses, kinds = self.addresses, self.kinds
        for name, kind, value in zip(kallsyms.names, kallsyms.kinds, kallsyms.values, strict=True):
            # Static symbols share names: a global one wins, else the lowest address.
            if name not in addresses or (kind.isupper() and kinds[name].islower()):
                addresses[name] = value - kaslr_shift if value >= KERNEL_SPACE else value
                kinds[name] = kind
        if "tk_core" not in addresses and "timekeeper_data" in addresses:
            # 6.17 made it the first of an array and tk_core a macro for that; Volatility's plugins ask for
            # tk_core.
            addresses["tk_core"], kinds["tk_core"] = addresses["timekeeper_data"], kinds["timekeeper_data"]
        for name, value in kallsyms.tables.items():
            addresses.setdefault(name, value - kaslr_shift)
            kinds.setdefault(name, "r")
        self._sorted = kallsyms.values
        self._shift = kaslr_shift

    def following(self, name: str) -> int | None:
        """Address of the first symbol behind one."""
        value = self.addresses[name]
        if value >= KERNEL_SPACE:
            value += self._shift
        following = bisect_right(self._sorted, value)
        if following == len(self._sorted):
            return None
        found = self._sorted[following]
        return found - self._shift if found >= KERNEL_SPACE else found

    def extent(self, name: str) -> int:
        """Bytes from a symbol to the next one at another address."""
        following = self.following(name)
        return following - self.addresses[name] if following is not None else 0

    def isf(self, *, full: bool) -> Json:
        """The table, whole or pruned to what is needed to look at processes and to run Volatility's
        plugins.
        """
        types = Types(self.btf)
        if full:
            types.define(self.btf.numbers(STRUCT, UNION, ENUM, ENUM64))
        else:
            types.define(number for name in wanted("types") for number in self.btf.aggregates(name))
        for name in ("int", "unsigned int", "char", "unsigned char", "long unsigned int", "long int"):
            _declare(types, name)
        return document(types, self._symbols(types, full=full), self.banner)

    def _symbols(self, types: Types, *, full: bool) -> dict[str, Json]:
        typed: dict[str, Json] = {}
        for name, number in self.btf.variables().items():
            if name in self.addresses:
                typed[name] = types.describe(number)
        for name, declaration in DECLARATIONS.items():
            if name in self.addresses:
                descriptor = self._declared(types, name, declaration)
                if descriptor is not None:
                    typed[name] = descriptor
        result: dict[str, Json] = {}
        kinds = self.kinds
        always = frozenset(wanted("symbols"))
        # Plugins size tables by the distance to the next symbol (linux.check_syscall): that one must stay.
        edges = {self.following(name) for name in always if name in self.addresses}
        noise, not_code = _NOISE.match, _NOT_CODE.match
        for name, address in self.addresses.items():
            if name in typed:
                result[name] = {"address": address, "type": typed[name]}
            elif full or name in always:
                result[name] = {"address": address, "type": _VOID}
            elif kinds[name] in _FUNCTIONS:
                if not not_code(name) or address in edges:
                    result[name] = {"address": address}
            elif not noise(name) or address in edges:
                result[name] = {"address": address, "type": _VOID}
        return result

    def _declared(self, types: Types, name: str, declarations: str) -> Json | None:
        for declaration in declarations.split("|"):
            descriptor = _declare(types, declaration.strip(), self.extent(name))
            if descriptor is not None:
                return descriptor
        return None


def _declare(types: Types, declaration: str, extent: int = 0) -> Json | None:
    match = _DECLARATION.fullmatch(declaration)
    if match is None:
        return None
    tag, base, stars, count = match.groups()
    btf = types.btf
    number: int | None
    size = 8
    if base == "void":
        number = 0
    elif base.startswith("{"):
        number = _with_members(btf, [one.strip() for one in base.strip("{}").split(",")])
    elif tag:
        number = max(btf.aggregates(base), key=btf.size, default=None)
    else:
        number = btf.integer_named(base)
    if number is None:
        return None
    descriptor = types.describe(number)
    if stars:
        for _ in range(stars.count("*")):
            descriptor = {"kind": "pointer", "subtype": descriptor}
    elif number:
        size = btf.size(number)
        if tag:
            types.define([number])
    if count is not None:
        elements = int(count) if count else extent // size if size else 0
        descriptor = {"kind": "array", "count": elements, "subtype": descriptor}
    return descriptor


def _with_members(btf: Btf, names: list[str]) -> int | None:
    for number in btf.numbers(STRUCT):
        if not btf.name(number) and [member.name for member in btf.members(number)] == names:
            return number
    return None


@lru_cache(maxsize=2)
def wanted(what: str) -> tuple[str, ...]:
    """The ``types`` that a pruned table begins with, or the ``symbols`` that it must have with a type.

    tests/symbols/collect.py makes the lists.
    """
    text = resources.files("symbols").joinpath(f"pruned_{what}.txt").read_text("ascii")
    return tuple(line for line in text.split("\n") if line and not line.startswith("#"))
