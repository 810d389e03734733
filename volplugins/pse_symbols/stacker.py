"""Lets every Linux plugin work without a symbol table from the user: see `live.volatility.input.stacker`.

Volatility finds stackers and automagics among the subclasses of its interfaces, so importing them is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# In a bare checkout `live` is not installed. Without it Volatility would say only that no such plugin exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.input.stacker import KernelStacker, TableFinder

__all__ = ["KernelStacker", "TableFinder"]
