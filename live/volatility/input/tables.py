"""Our symbol tables inside Volatility."""

from __future__ import annotations

from typing import Any

from volatility3.framework.symbols import linux

STOCK = "volatility3.framework.symbols.linux.LinuxKernelIntermedSymbols"
OURS = "live.volatility.input.tables.KernelSymbols"


class KernelSymbols(linux.LinuxKernelIntermedSymbols):  # type: ignore[misc]
    """A kernel's symbol table out of our cache.

    Where jsonschema is installed, the host checks a table that it has not seen before against the schema (5
    s), and hashes it each time to know (0.2 s).  Ours are made in one place, and its tests check them
    (tests/symbols).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the host's own, without the check."""
        super().__init__(*args, **{**kwargs, "validate": False})
