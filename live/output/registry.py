"""The outputs by name: built-in ones, and those of third-party packages (entry points of ``pse.outputs``)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from live.core.registry import Registry
from live.output.contract import Output

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"table": "live.output.table:table", "plain": "live.output.table:plain", "ecs": "live.output.ecs:lines"}
)
"""Name -> ``module:function`` of an `Output`, imported on use.  The first is the default."""
DEFAULT = next(iter(BUILT_IN))
KNOWN: Registry[Output] = Registry("output", "pse.outputs", BUILT_IN)


def names() -> tuple[str, ...]:
    """All names, built-in ones first."""
    return KNOWN.names()


def output(name: str) -> Output:
    """Import and return an output.  Raises `TargetError` if ``name`` is unknown or its package fails."""
    return KNOWN.load(name)
