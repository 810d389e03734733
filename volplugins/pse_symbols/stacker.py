"""Lets every Linux plugin work without a symbol table from the user: see `live.volatility.input.stacker`.

Volatility finds stackers and automagics among the subclasses of its interfaces; importing them is all it
takes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# From a bare checkout `live` is not installed, and Volatility would only say that the plugin does not exist.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.input.stacker import KernelStacker, TableFinder

__all__ = ["KernelStacker", "TableFinder"]
