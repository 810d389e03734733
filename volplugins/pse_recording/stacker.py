"""Lets every Linux plugin look at a recording, at any event: see `live.volatility.input.recording`.

Volatility finds what is here among the subclasses of its interfaces; importing it is all it takes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# From a bare checkout `live` is not installed, and Volatility would only say that nothing of that name
# exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.input.recording import RecordingLayer, RecordingOptions, RecordingStacker, SymbolsHandler

__all__ = ["RecordingLayer", "RecordingOptions", "RecordingStacker", "SymbolsHandler"]
