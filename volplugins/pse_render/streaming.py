"""``-r rich`` and ``-r jsonlines``: see `live.volatility.output`.

Volatility finds renderers among the subclasses of its interfaces; importing them is all it takes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# From a bare checkout `live` is not installed, and Volatility would only say that nothing of that name
# exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.volatility.output.json_lines import JsonLinesStream
from live.volatility.output.rich_text import RichText

__all__ = ["JsonLinesStream", "RichText"]
