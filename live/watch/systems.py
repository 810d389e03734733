"""Which operating systems are searched for in a guest: the table, and the search."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from live.core.errors import NoKernelFound, TargetError
from live.core.hypervisor import UnplacedRam
from live.core.machine import Architecture
from live.core.memory import MemoryReader
from live.core.system import Finder, OperatingSystem, Progress

SYSTEMS = {"linux": "live.linux.system:LINUX"}
"""Name -> ``module:object`` of its `live.core.system.Finder`, imported when it is needed."""


def finders() -> list[Finder]:
    """All of them."""
    return [finder(name) for name in SYSTEMS]


def finder(name: str) -> Finder:
    """That of one system.  Raises `TargetError` for one that is not known."""
    where = SYSTEMS.get(name)
    if where is None:
        raise TargetError(f"the operating system {name} is not known; known: {', '.join(SYSTEMS)}")
    module, _, attribute = where.partition(":")
    found: Finder = getattr(importlib.import_module(module), attribute)
    return found


def place(ram: UnplacedRam, machine: Architecture, systems: Sequence[Finder]) -> None:
    """Lay out RAM as the first of ``systems`` knows how; it stays one run from gpa 0 if none does."""
    for one in systems:
        if one.place(ram, machine):
            return


def find(
    memory: MemoryReader, machine: Architecture, systems: Sequence[Finder], progress: Progress | None = None
) -> OperatingSystem:
    """The first of ``systems`` that lives in ``memory``.

    Raises what the first said if none does: `NoKernelFound` or `SymbolsMissing`, with what to do next.
    """
    failure: NoKernelFound | None = None
    for one in systems:
        try:
            return one.find(memory, machine, progress)
        except NoKernelFound as error:
            failure = failure or error
    raise failure or NoKernelFound("no operating system is searched for; name one")
