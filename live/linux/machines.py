"""Facts about Linux that depend on the architecture: addresses, system-call entry points and numbers.

Data.  To add an architecture, add an entry to `MACHINES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from live.core.traps import Abi


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxMachine:
    """Linux on one architecture.

    ``image``: guest-virtual address of the image mapping, without KASLR shift.  ``largest_image``: its
    largest size in bytes.  ``direct_map``: page-table levels -> guest-virtual address of the direct map, for
    kernels that do not randomise it.  ``entries``: symbol of a system-call entry point -> the table in which
    its system-call numbers count.  ``native_entry``: the one that must exist for `entries` to be used.
    ``waits``: numbers of the system calls that wait for a child.  ``calls``: number -> name of those that
    make a process in the caller's address space, for each table.
    """

    image: int
    largest_image: int
    direct_map: Mapping[int, int]
    native_entry: str
    entries: Mapping[str, Abi]
    waits: frozenset[int]
    calls: Mapping[Abi, Mapping[int, str]]


MACHINES: Mapping[str, LinuxMachine] = {
    "x86_64": LinuxMachine(
        image=0xFFFF_FFFF_8000_0000,  # __START_KERNEL_map
        largest_image=1 << 30,  # KERNEL_IMAGE_SIZE
        # Documentation/arch/x86/x86_64/mm.rst; without CONFIG_DYNAMIC_MEMORY_LAYOUT
        direct_map={4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000},
        native_entry="entry_SYSCALL_64",
        entries={  # arch/x86/entry
            "entry_SYSCALL_64": Abi.NATIVE,
            "entry_SYSCALL_compat": Abi.COMPAT,
            "entry_SYSENTER_compat": Abi.COMPAT,
            "entry_INT80_compat": Abi.COMPAT,
            "asm_int80_emulation": Abi.COMPAT,  # since 6.7 and in older stable kernels
        },
        waits=frozenset({61, 247}),  # wait4, waitid: what most parents call right after fork
        calls={  # arch/x86/entry/syscalls
            Abi.NATIVE: {56: "clone", 58: "vfork", 435: "clone3"},
            Abi.COMPAT: {120: "clone", 190: "vfork", 435: "clone3"},
        },
    )
}
"""By `Architecture.name`."""
