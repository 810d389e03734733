import os
from pathlib import Path

import pytest

from live.core import asids, lifecycle

ROOT = Path(os.environ.get("PSE_CHECKOUT", Path(__file__).parents[2]))


@pytest.mark.parametrize("table", [lifecycle, asids])
def test_the_documented_diagram_is_the_table(table):
    assert f"```mermaid\n{table.diagram()}\n```" in (ROOT / "docs" / "LIFECYCLE.md").read_text()
