"""Lets ``-f SCHEME:///TARGET`` name a running guest: see `live.volatility.input.handler`.

Volatility finds URL handlers among the subclasses of its interfaces, so importing them is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# In a bare checkout `live` is not installed. Without it Volatility would say only that no such name exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.input.handler import GuestHandler

__all__ = ["GuestHandler"]
