"""The class that reads our symbol tables in Volatility."""

from __future__ import annotations

from typing import Any

from volatility3.framework.symbols import linux

STOCK = "volatility3.framework.symbols.linux.LinuxKernelIntermedSymbols"
OURS = "live.volatility.input.tables.KernelSymbols"


class KernelSymbols(linux.LinuxKernelIntermedSymbols):  # type: ignore[misc]
    """A kernel's symbol table from our cache, not validated.

    With jsonschema installed, Volatility validates each new table (5 s) and hashes the table at each run to
    know whether it is new (0.2 s).  The generator's tests validate ours (tests/symbols).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Like the stock class, with ``validate`` False."""
        super().__init__(*args, **{**kwargs, "validate": False})
