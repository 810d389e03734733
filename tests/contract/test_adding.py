"""What docs/ADDING.md shows is really in the files that it names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
ADDING = Path(os.environ.get("PSE_CHECKOUT", HERE)) / "docs" / "ADDING.md"
TEXT = ADDING.read_text()
SHOWN = re.findall(r"^From `([^`]+)`:\n\n```(?:python|toml)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_block_says_where_it_is_from():
    assert len(SHOWN) == len(re.findall(r"^```\w", TEXT, re.MULTILINE)) > 10


@pytest.mark.parametrize(("name", "block"), SHOWN, ids=[f"{at}-{name}" for at, (name, _) in enumerate(SHOWN)])
def test_a_block_is_in_its_file(name: str, block: str):
    assert block in (HERE / name).read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:tests|live|symbols)/[\w./]+)`", TEXT))))
def test_what_is_named_exists(name: str):
    root = HERE if name.startswith("tests/") else ADDING.parents[1]
    assert (root / name).exists(), f"{name} is named in docs/ADDING.md"


def test_every_name_in_it_is_somewhere():
    """Classes and constants that are spoken of."""
    import live.arch
    import live.testing
    from live.core import errors, hypervisor, memory, system, traps
    from live.output import contract, registry
    from live.watch import systems

    modules = (
        live.testing,
        live.arch,
        errors,
        hypervisor,
        memory,
        system,
        traps,
        contract,
        registry,
        systems,
    )
    known = {name for module in modules for name in vars(module)}
    spoken = set(re.findall(r"`([A-Z][A-Za-z_]+)(?:\.\w+)?`", TEXT))
    assert spoken - known - {"Task", "Protocol", "None"} == set()
