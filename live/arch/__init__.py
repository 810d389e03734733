"""Architectures: the only place that knows registers, page tables and instruction forms.

One file each.  `architecture` finds one by the name that a hypervisor gives (`GuestInfo.machine`).
"""

from __future__ import annotations

import importlib

from live.core.errors import TargetError
from live.core.machine import Architecture

ARCHITECTURES = {"x86_64": "live.arch.x86_64:X86_64"}
"""Name -> ``module:object``, imported when it is asked for."""


def architecture(name: str) -> Architecture:
    """The architecture of this name.  Raises `TargetError` for one that is not known."""
    where = ARCHITECTURES.get(name)
    if where is None:
        raise TargetError(
            f"the guest's architecture is {name}, and only {', '.join(ARCHITECTURES)} can be introspected"
        )
    module, _, attribute = where.partition(":")
    found: Architecture = getattr(importlib.import_module(module), attribute)
    return found
