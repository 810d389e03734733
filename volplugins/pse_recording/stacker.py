"""Lets every Linux plugin read a recording, at any event: see `live.volatility.input.recording`.

Volatility finds these classes among the subclasses of its interfaces, so importing them is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# In a bare checkout `live` is not installed. Without it Volatility would say only that no such name exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.input.recording import RecordingLayer, RecordingOptions, RecordingStacker, SymbolsHandler

__all__ = ["RecordingLayer", "RecordingOptions", "RecordingStacker", "SymbolsHandler"]
