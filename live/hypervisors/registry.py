"""Which hypervisors there are, and which of them a target means.

Ours are in `BUILT_IN`; a third-party package adds one as an entry point of the group ``pse.hypervisors``: the
name is its scheme, the value a `live.core.hypervisor.Hypervisor` (docs/ADDING.md).  Ours are no entry points,
because Volatility loads the plugin pack from a bare checkout, too, where nothing is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from live.core.errors import NoTarget, PseError
from live.core.hypervisor import Guest, GuestInfo, Hypervisor
from live.core.registry import Registry

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"qemu": "live.hypervisors.qemu.entry:QEMU", "process": "live.hypervisors.process:PROCESS"}
)
"""Scheme -> ``module:object``, imported when it is used.  The first is asked for targets without a scheme."""

COMMANDS = ("live.hypervisors.qemu.command",)
"""Modules that add commands of a hypervisor to `pse`, each with ``add(commands)``."""


KNOWN: Registry[Hypervisor] = Registry("hypervisor", "pse.hypervisors", BUILT_IN)


def schemes() -> tuple[str, ...]:
    """Every scheme, ours first."""
    return KNOWN.names()


def hypervisor(scheme: str) -> Hypervisor:
    """The hypervisor of a scheme, imported now.  Raises `TargetError` for one that is not known or broken."""
    return KNOWN.load(scheme)


def guests(failed: Callable[[str], object] = lambda _: None) -> list[tuple[Hypervisor, GuestInfo]]:
    """Every running guest that can be seen from here.

    A hypervisor that fails hides no other: ``failed`` is told of it, in a sentence.
    """
    found = []
    for scheme in schemes():
        try:
            one = hypervisor(scheme)
            found += [(one, info) for info in one.guests()]
        except PseError as error:
            failed(str(error))
        except Exception as error:  # a third-party package may fail in any way
            failed(f"the hypervisor {scheme} cannot list its guests ({error!r}); repair its package")
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
    default = hypervisor(schemes()[0])
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
