"""PANDA's names of registers, and ours (`live.arch.x86_64`).

The names of general registers are the same in both.  Sources: pandare/arch.py, ``X86_64Arch.get_reg`` (a
segment's name gives its base); target/i386/cpu.h, ``CPUX86State``.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from live.core.machine import Registers
from live.hypervisors.panda.api import Cpu, Panda

_NAMES = MappingProxyType(
    {
        "rip": "PC",
        "gs_base": "GS",
        "fs_base": "FS",
        "efl": "EFLAGS",
        **{f"cr{n}": f"CR{n}" for n in (0, 2, 3, 4)},
    }
)
"""Ours -> those of `Arch.get_reg`, where they differ."""
_MEMBERS = MappingProxyType({"k_gs_base": "kernelgsbase"})
"""Ours -> members of ``CPUX86State``, where `Arch.get_reg` has none."""
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
ALL = (*GENERAL, *_NAMES, *_MEMBERS)
"""Every register that can be read here."""
_MASK = (1 << 64) - 1


def read(panda: Panda, cpu: Cpu, names: Iterable[str]) -> Registers:
    """The registers of those names; what is not known here is left out."""
    values = {}
    for name in names:
        if name in _MEMBERS:
            values[name] = int(getattr(cpu.env_ptr, _MEMBERS[name])) & _MASK
        elif name in _NAMES or name in GENERAL:
            values[name] = int(panda.arch.get_reg(cpu, _NAMES.get(name, name))) & _MASK
    return values
