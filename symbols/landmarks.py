"""The few addresses and offsets that recognise a kernel in RAM and show that it is running.

They are cached beside the symbol table, as JSON.  A kernel that was seen before is recognised by reading a
few words at known addresses, without searching RAM, decoding types or loading the table.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from live.core.errors import SymbolsMissing
from symbols import btf as kinds
from symbols.btf import Btf
from symbols.table import KernelTable

_GNU_NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Landmarks:
    """Link-time virtual addresses, and offsets in bytes; 0 or "" for what the kernel lacks."""

    banner: str
    build_id: str
    link_text: int
    linux_banner: int
    notes: int
    """Address of the 20 bytes of the build-id."""
    init_top_pgt: int
    init_task: int
    page_offset_base: int
    wall_clock: int
    """Address of `tk_core.timekeeper.xtime_sec`: u64, seconds since the epoch."""
    vmcoreinfo_data: int
    comm: int
    tasks: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Landmarks:
        """The inverse of `to_json`.  Raises `ValueError`."""
        if not isinstance(data, dict) or set(data) != {field.name for field in fields(cls)}:
            raise ValueError("not landmarks")
        for field in fields(cls):
            if not isinstance(data[field.name], str if field.name in ("banner", "build_id") else int):
                raise ValueError(f"landmark {field.name}")
        return cls(**data)


def landmarks(table: KernelTable, build_id: tuple[str, int], link_text: int) -> Landmarks:
    """The landmarks of a kernel.  Raises `SymbolsMissing` if it lacks a needed symbol or member.

    ``build_id``: (hexadecimal, link-time address of its bytes); ``link_text``: link-time address of `_text`.
    """
    btf, addresses = table.btf, table.addresses

    def need(*names: str) -> int:
        for name in names:
            if name in addresses:
                return addresses[name]
        raise SymbolsMissing(
            f"this kernel's kallsyms lacks {names[0]} (CONFIG_KALLSYMS_ALL is off): "
            "give a symbol table made from its debug package to Volatility by hand"
        )

    clock = 0
    if "tk_core" in addresses:
        inside = _offset_in_tk_core(btf)
        clock = addresses["tk_core"] + inside if inside else 0
    return Landmarks(
        banner=table.banner,
        build_id=build_id[0],
        link_text=link_text,
        linux_banner=need("linux_banner"),
        notes=build_id[1],
        init_top_pgt=need("init_top_pgt", "init_level4_pgt", "swapper_pg_dir"),
        init_task=need("init_task"),
        page_offset_base=addresses.get("page_offset_base", 0),
        wall_clock=clock,
        vmcoreinfo_data=addresses.get("vmcoreinfo_data", 0),
        comm=_offset(btf, "task_struct", "comm"),
        tasks=_offset(btf, "task_struct", "tasks"),
    )


def _members(btf: Btf, number: int) -> dict[str, tuple[int, int]]:
    return {member.name: (member.offset // 8, member.type) for member in btf.members(number)}


def _offset(btf: Btf, tag: str, name: str) -> int:
    for number in btf.aggregates(tag):
        found = _members(btf, number).get(name)
        if found is not None:
            return found[0]
    raise SymbolsMissing(
        f"this kernel's BTF has no struct {tag} with a member {name}: it is not the kernel's own, or "
        "damaged; "
        "read the memory again, or build the table from the kernel's vmlinuz"
    )


def _offset_in_tk_core(btf: Btf) -> int:
    """Offset of ``timekeeper.xtime_sec`` in `tk_core`; 0 if the types are not as expected."""
    candidates = btf.aggregates("tk_data") or [n for n in btf.numbers(kinds.STRUCT) if not btf.name(n)]
    for number in candidates:
        members = btf.members(number)
        if not 2 <= len(members) <= 8 or members[1].name != "timekeeper":
            continue
        inner = _members(btf, btf.resolve(members[1].type)).get("xtime_sec")
        if inner is not None:
            return members[1].offset // 8 + inner[0]
    return 0


def find_build_id(image: bytes | memoryview, start: int, end: int) -> tuple[str, int]:
    """(build-id in hexadecimal, offset of its bytes) in the notes at ``start`` to ``end``; else ("", 0)."""
    if not 0 <= start < end <= len(image):
        return "", 0
    match = re.compile(re.escape(_GNU_NOTE)).search(image, start, end)
    if match is None or match.end() + 20 > len(image):
        return "", 0
    return bytes(image[match.end() : match.end() + 20]).hex(), match.end()
