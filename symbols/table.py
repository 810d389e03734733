"""One kernel's types and symbols: the input of `symbols.isf` and `symbols.alive`."""

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
# Not the __syscall_meta__ symbols: linux.check_syscall counts them.
_NOT_CODE = re.compile(
    r"__pfx_|__SCK__|__UNIQUE_ID_|event_(?:enter|exit)__|types__|args__|__flags_|print_fmt_|__BTF_ID_"
    r"|trace_event_fields_|__?TRACE_SYSTEM|TRACE_SYSTEM|__event_|__ksymtab_|__kstrtab"
)
# Padding before functions, export tables, and compiler-numbered symbols: no plugin looks them up by name.
_NOISE = re.compile(
    r"__pfx_|__ksymtab_|__kstrtab|__crc_|__param_|__setup_|__initcall_|__UNIQUE_ID_|__func__|__already_done|__print_once"
    r"|__warned|_entry\.|_entry_ptr|__key\.|_rs\.|descriptor\.|__msg\.|__compoundliteral|__compound_literal"
    r"|event_|__event_|__p_syscall_meta_|types__|args__|trace_event_|__bpf_trace|str__|print_fmt_"
    r"|__tpstrtab_|__tp_map|__SCK__|__SCT__|__SCT_|\.L|__export_symbol_|__bpf_kfunc|__quirk|__flags_|__BTF_ID_|(?:__)?TRACE_SYSTEM|security_hook_active|.*\.\d+$"
)
_DECLARATION = re.compile(r"(struct|union)?\s*(\{[^}]*\}|[\w ]*\w)\s*((?:\*\s*)*)(?:\[(\d*)\])?\s*")


class KernelTable:
    """BTF and kallsyms of one kernel; addresses are link-time ones, without the KASLR shift."""

    def __init__(self, btf: Btf, kallsyms: Kallsyms, kaslr_shift: int, banner: str) -> None:
        """``kallsyms`` has run-time addresses: link-time ones plus ``kaslr_shift`` bytes."""
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
            # From 6.17 tk_core is a macro for the first element of timekeeper_data[]; plugins need tk_core.
            addresses["tk_core"], kinds["tk_core"] = addresses["timekeeper_data"], kinds["timekeeper_data"]
        for name, value in kallsyms.tables.items():
            addresses.setdefault(name, value - kaslr_shift)
            kinds.setdefault(name, "r")
        self._sorted = kallsyms.values
        self._shift = kaslr_shift

    def following(self, name: str) -> int | None:
        """Link-time address of the next symbol at a higher address, or None."""
        value = self.addresses[name]
        if value >= KERNEL_SPACE:
            value += self._shift
        following = bisect_right(self._sorted, value)
        if following == len(self._sorted):
            return None
        found = self._sorted[following]
        return found - self._shift if found >= KERNEL_SPACE else found

    def extent(self, name: str) -> int:
        """Bytes from a symbol to the next one at a higher address; 0 for the last."""
        following = self.following(name)
        return following - self.addresses[name] if following is not None else 0

    def isf(self, *, full: bool) -> Json:
        """The ISF: with every type and symbol, or with those that pse and Volatility's plugins use."""
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
        # Plugins size tables by the distance to the next symbol (linux.check_syscall), so it must be kept.
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
    """The names of pruned_``what``.txt: root ``types`` of a pruned table, or ``symbols`` that it must have.

    tests/symbols/collect.py makes these lists.
    """
    text = resources.files("symbols").joinpath(f"pruned_{what}.txt").read_text("ascii")
    return tuple(line for line in text.split("\n") if line and not line.startswith("#"))
