"""Lets ``-f qemu:///PATH`` name the memory of a running guest: see `live.volatility.input.handler`.

Volatility finds URL handlers among the subclasses of its interfaces; importing them is all it takes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# From a bare checkout `live` is not installed, and Volatility would only say that nothing of that name
# exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.input.handler import GuestHandler

__all__ = ["GuestHandler"]
