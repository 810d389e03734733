"""Compares our table with the DWARF of the same kernel: every member offset that both have.

    python -m tests.symbols.dwarf [KERNEL...]

For each kernel of the lab (default: all) the debug package is fetched through apt (about 1 GB each).  The
DWARF is read by drgn (PyPI; only this needs it), which shares no code with us, nor with pahole, which made
the kernel's BTF.  Prints counts, and each difference; the exit status is 1 if there is one.

A tag that the kernel defines more than once is compared with the definition that has the same size and member
names, as DWARF has one for each compilation unit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# drgn indexes in parallel and offers the definition that a thread was first to find; with one, it is always
# the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import drgn

from symbols import sources
from tests.guest.apt import Apt
from tests.guest.command import run_command
from tests.guest.errors import FetchError
from tests.guest.kernels import KERNELS, Image, fetch

Json = dict[str, Any]


def flat(document: Json, fields: Json, base: int = 0) -> Iterator[tuple[str, int, int]]:
    """(name, bit offset, bit size of a bit-field or 0) of all named members, anonymous ones lifted."""
    for name, field in fields.items():
        offset = base + field["offset"] * 8
        if field.get("anonymous"):
            yield from flat(document, document["user_types"][field["type"]["name"]]["fields"], offset)
        elif field["type"]["kind"] == "bitfield":
            yield name, offset + field["type"]["bit_position"], field["type"]["bit_length"]
        elif not name.startswith("unnamed_field_"):
            yield name, offset, 0


def flat_dwarf(type_: drgn.Type, base: int = 0) -> Iterator[tuple[str, int, int]]:
    """The same of a DWARF type."""
    for member in type_.members or ():
        if member.name is None:
            inner = member.type
            while inner.kind == drgn.TypeKind.TYPEDEF:
                inner = inner.type
            if inner.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
                yield from flat_dwarf(inner, base + member.bit_offset)
        else:
            yield member.name, base + member.bit_offset, member.bit_field_size or 0


def compare(document: Json, program: drgn.Program) -> tuple[dict[str, int], list[str]]:
    """(counts, differences)."""
    counts = dict.fromkeys(("types", "members", "only ours", "symbols", "constants"), 0)
    differences = []
    for name, ours in document["user_types"].items():
        if name.startswith("unnamed_") or ("__" in name[1:] and name.rpartition("__")[2].isdigit()):
            continue
        try:
            theirs = program.type(f"{ours['kind']} {name}")
        except (LookupError, SyntaxError):
            try:
                theirs = program.type(name)  # an anonymous one, under its typedef's name
                while theirs.kind == drgn.TypeKind.TYPEDEF:
                    theirs = theirs.type
            except (LookupError, SyntaxError):
                counts["only ours"] += 1
                continue
        mine = {member[0]: member[1:] for member in flat(document, ours["fields"])}
        other = {member[0]: member[1:] for member in flat_dwarf(theirs)}
        if theirs.size != ours["size"] or mine.keys() != other.keys():
            # Another definition of the same tag?  drgn offers the first; look through all files' ones.
            other, size = _same_shape(program, ours, name, mine)
            if other is None:
                differences.append(
                    f"{name}: size {ours['size']} or members differ from DWARF ({theirs.size}, {size})"
                )
                continue
        counts["types"] += 1
        for member, place in mine.items():
            counts["members"] += 1
            if other[member] != place:
                differences.append(f"{name}.{member}: {place} but {other[member]} in DWARF")
    return counts, differences


def _same_shape(program: drgn.Program, ours: Json, name: str, mine: Json) -> tuple[Any, str]:
    """The members of the definition with our size and names, searched in the files that mention the tag."""
    for file in _FILES.get(name, ()):
        try:
            theirs = program.type(f"{ours['kind']} {name}", file)
        except LookupError:
            continue
        other = {member[0]: member[1:] for member in flat_dwarf(theirs)}
        if theirs.size == ours["size"] and other.keys() == mine.keys():
            return other, ""
    only = "no definition of that shape in the files looked at"
    return None, only


# Where the kernel defines a second struct of one name.
_FILES: dict[str, tuple[str, ...]] = {
    "pci_root_info": ("arch/x86/pci/acpi.c", "arch/x86/pci/bus_numa.h", "bus_numa.h"),
    "irq_info": (
        "drivers/xen/events/events_base.c",
        "events_base.c",
        "arch/x86/include/asm/pci_x86.h",
        "pci_x86.h",
    ),
    "getdents_callback": ("fs/readdir.c", "readdir.c", "fs/exportfs/expfs.c", "expfs.c"),
    "netlbl_domhsh_walk_arg": ("net/netlabel/netlabel_mgmt.c", "netlabel_mgmt.c", "netlabel_cipso_v4.c"),
    "remap_data": ("drivers/xen/xlate_mmu.c", "arch/x86/xen/mmu_pv.c", "mmu_pv.c"),
}


def symbols(document: Json, program: drgn.Program, bias: int) -> tuple[int, list[str]]:
    """(symbols compared, differences) of addresses against the ELF symbol table."""
    compared, differences = 0, []
    theirs: dict[str, set[int]] = {}
    for symbol in program.symbols():
        theirs.setdefault(symbol.name, set()).add(symbol.address - bias & (1 << 64) - 1)
    for name, symbol in document["symbols"].items():
        if name in theirs:
            compared += 1
            if symbol["address"] not in theirs[name]:
                differences.append(
                    f"symbol {name}: {symbol['address']:#x} but {sorted(map(hex, theirs[name]))}"
                )
    return compared, differences


def debug_image(kernel: Image, directory: Path) -> Path:
    """The kernel's vmlinux with DWARF, out of its debug package.  Raises `FetchError`."""
    suite = KERNELS[kernel.name].suite
    package = Apt(suite).fetch(f"linux-image-{kernel.release}-dbg", directory)
    name = f"./usr/lib/debug/boot/vmlinux-{kernel.release}"
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", directory, name], stdin=archive.stdout, check=True)
    package.unlink()
    return directory / name


def compared(kernel: Image, vmlinux: Path) -> int:
    """Prints the comparison; the number of differences.  Raises `FetchError` if there is no DWARF."""
    document = sources.isf(kernel.vmlinuz, full=True)
    program = drgn.Program()
    module = program.extra_module("vmlinux", create=True)
    module.address_range = (0, (1 << 64) - 1)
    module.try_file(vmlinux, force=True)
    if module.debug_file_status != drgn.ModuleFileStatus.HAVE:
        raise FetchError(
            f"{vmlinux.name} holds no DWARF that drgn can read ({module.debug_file_status.name})"
        )
    counts, differences = compare(document, program)
    counts["symbols"], more = symbols(document, program, module.loaded_file_bias)
    differences += more
    for difference in differences[:200]:
        print(difference)
    print(
        f"{kernel.release}: {counts['types']} types, {counts['members']} member offsets, "
        f"{counts['symbols']} symbol addresses compared; "
        f"{counts['only ours']} types in our table only; {len(differences)} differences",
        flush=True,
    )
    return len(differences)


def main(names: list[str]) -> int:
    """Fetch and compare."""
    differences = done = 0
    for name in names or KERNELS:
        with tempfile.TemporaryDirectory() as directory:
            try:
                kernel = fetch(name)
                differences += compared(kernel, debug_image(kernel, Path(directory)))
                done += 1
            except FetchError as error:
                print(f"{name}: not compared: {error}", flush=True)
    return 1 if differences or not done else 0


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
