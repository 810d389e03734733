"""Things by name: built-in ones, and those that third-party packages add as entry points."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Generic, TypeVar

from live.core.errors import TargetError

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """One kind of thing.  A package cannot take over a built-in name."""

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        """``kind``: the word for one, for messages.  ``group``: of entry points.  ``built_in``: see below."""
        self.kind, self.group = kind, group
        self.built_in = built_in
        """Name -> ``module:object``, imported when it is used."""

    @functools.cached_property
    def packages(self) -> Mapping[str, importlib.metadata.EntryPoint]:
        """The entry points of installed packages, by name."""
        return {one.name: one for one in importlib.metadata.entry_points(group=self.group)}

    def names(self) -> tuple[str, ...]:
        """All of them, built-in ones first."""
        return (*self.built_in, *sorted(self.packages.keys() - self.built_in.keys()))

    def load(self, name: str) -> _T:
        """Import and return one.  Raises `TargetError` if it is unknown or its package fails."""
        where = self.built_in.get(name)
        if where is not None:
            module, _, attribute = where.partition(":")
            found: _T = getattr(importlib.import_module(module), attribute)
            return found
        entry = self.packages.get(name)
        if entry is None:
            raise TargetError(f"there is no {self.kind} {name}; there are: {', '.join(self.names())}")
        try:
            loaded: _T = entry.load()
        except Exception as error:  # a third-party package may fail in any way
            raise TargetError(
                f"the {self.kind} {name} ({entry.value}) cannot be loaded ({error!r}); repair or remove its "
                "package"
            ) from error
        return loaded
