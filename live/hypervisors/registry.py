"""Which hypervisors there are, and which of them a target means.

Ours are in `BUILT_IN`; a third-party package adds one as an entry point of the group ``pse.hypervisors``: the
name is its scheme, the value a `live.core.hypervisor.Hypervisor` (docs/ADDING.md).  Ours are no entry points,
because Volatility loads the plugin pack from a bare checkout, too, where nothing is installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from live.core.errors import NoTarget, PseError, TargetError
from live.core.hypervisor import Guest, GuestInfo, Hypervisor

GROUP = "pse.hypervisors"
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"qemu": "live.hypervisors.qemu.entry:QEMU", "process": "live.hypervisors.process:PROCESS"}
)
"""Scheme -> ``module:object``, imported when it is used.  The first is asked for targets without a scheme."""

COMMANDS = ("live.hypervisors.qemu.command",)
"""Modules that add commands of a hypervisor to `pse`, each with ``add(commands)``."""


@functools.cache
def _entry_points() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}


def schemes() -> tuple[str, ...]:
    """Every scheme, ours first."""
    return (*BUILT_IN, *sorted(_entry_points().keys() - BUILT_IN.keys()))


def hypervisor(scheme: str) -> Hypervisor:
    """The hypervisor of a scheme, imported now.  Raises `TargetError` for one that is not known or broken."""
    where = BUILT_IN.get(scheme)
    if where is not None:
        module, _, attribute = where.partition(":")
        found: Hypervisor = getattr(importlib.import_module(module), attribute)
        return found
    entry = _entry_points().get(scheme)
    if entry is None:
        raise TargetError(f"there is no hypervisor {scheme}; there are: {', '.join(schemes())}")
    try:
        loaded: Hypervisor = entry.load()
    except Exception as error:  # a stranger's package may fail in any way
        raise TargetError(
            f"the hypervisor {scheme} ({entry.value}) cannot be loaded ({error!r}); repair or remove its "
            "package"
        ) from error
    return loaded


def guests() -> list[tuple[Hypervisor, GuestInfo]]:
    """Every running guest that can be seen from here.  A hypervisor that fails is passed over."""
    found = []
    for scheme in schemes():
        try:
            one = hypervisor(scheme)
            found += [(one, info) for info in one.guests()]
        except PseError:
            continue
    return found


def attach(target: str | None) -> Guest:
    """Attach to the guest that ``target`` means: ``SCHEME:TARGET``, or a name or pid of any hypervisor.

    None: the only running guest.  What no hypervisor lists is for the first of them to make sense of (the
    path of a monitor socket).  Raises `TargetError` and its kinds, `GuestGone`.
    """
    if target is not None:
        scheme, colon, rest = target.partition(":")
        if colon and scheme in schemes():
            return hypervisor(scheme).attach(rest or None)
    default = hypervisor(next(iter(BUILT_IN)))
    running = guests()
    if all(one is default for one, _ in running):
        return default.attach(target)
    fitting = [
        (one, info) for one, info in running if target is None or target in (info.name, str(info.pid or ""))
    ]
    if not fitting:
        return default.attach(target)
    if len(fitting) > 1:
        raise NoTarget(f"{_several(target)}: {_listing(fitting)}; name one of them as SCHEME:NAME.")
    one, info = fitting[0]
    return one.attach(target or (str(info.pid) if info.pid else info.name))


def _several(target: str | None) -> str:
    return "Several guests are running" if target is None else f"Several guests are called {target}"


def _listing(found: Sequence[tuple[Hypervisor, GuestInfo]]) -> str:
    return ", ".join(f"{one.scheme}:{info.name}" for one, info in found)
