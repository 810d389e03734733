"""``-r rich`` and ``-r jsonlines``: see `live.volatility.output`.

Volatility finds renderers among the subclasses of its interfaces, so importing them is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# In a bare checkout `live` is not installed. Without it Volatility would say only that no such name exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.output.json_lines import JsonLinesStream
from live.volatility.output.rich_text import RichText

__all__ = ["JsonLinesStream", "RichText"]
