import os
from pathlib import Path

from live.core.lifecycle import diagram

ROOT = Path(os.environ.get("PSE_CHECKOUT", Path(__file__).parents[2]))


def test_the_documented_diagram_is_the_table():
    assert f"```mermaid\n{diagram()}\n```" in (ROOT / "docs" / "LIFECYCLE.md").read_text()
