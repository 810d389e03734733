"""The constant table of adapters: a new hypervisor is one folder here and one line in `ADAPTERS`.

The capabilities that an adapter may implement are Protocols in the core: `live.core.memory.MemoryReader`,
`live.core.traps.RegisterReader` and `live.core.traps.TrapSource`.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import Any

ADAPTERS = MappingProxyType({"qemu": "live.hypervisors.qemu"})
"""Scheme -> package, imported when used.

The package has ``attach(target)``, which takes a target (or None) and returns a guest: a context manager
with ``memory``, ``info``, ``vcpus``, ``alive()``, ``paused()``, ``close()``; and
``choose(guest, mode, *, ways)``, which returns a `live.hypervisors.qemu.offers.Choice` of how
to be told of what happens in it.
"""


def adapter(scheme: str) -> Any:
    """The package of an adapter, imported now.  Raises `KeyError` for an unknown scheme."""
    return importlib.import_module(ADAPTERS[scheme])
