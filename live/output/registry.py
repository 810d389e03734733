"""The outputs by name: built-in ones, and those of third-party packages (entry points of ``pse.outputs``)."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType

from live.core.errors import TargetError
from live.output.contract import Output

GROUP = "pse.outputs"
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"table": "live.output.table:table", "plain": "live.output.table:plain", "ecs": "live.output.ecs:lines"}
)
"""Name -> ``module:function`` of an `Output`, imported on use.  The first is the default."""
DEFAULT = next(iter(BUILT_IN))


@functools.cache
def _entry_points() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """All names, built-in ones first."""
    return (*BUILT_IN, *sorted(_entry_points().keys() - BUILT_IN.keys()))


def output(name: str) -> Output:
    """Import and return an output.  Raises `TargetError` if ``name`` is unknown or its package fails."""
    where = BUILT_IN.get(name)
    if where is not None:
        module, _, attribute = where.partition(":")
        found: Output = getattr(importlib.import_module(module), attribute)
        return found
    entry = _entry_points().get(name)
    if entry is None:
        raise TargetError(f"there is no output {name}; there are: {', '.join(names())}")
    try:
        loaded: Output = entry.load()
    except Exception as error:  # a third-party package may fail in any way
        raise TargetError(
            f"the output {name} ({entry.value}) cannot be loaded ({error!r}); repair or remove its package"
        ) from error
    return loaded
