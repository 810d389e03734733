"""The adapter under pandare itself, over a stand-in for PANDA's native library; and the fake against pandare.

PANDA is not run: its package has no native library.
"""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hypervisors.panda_fake import FakePanda, X86_64Arch

pandare = pytest.importorskip("pandare")
METHODS = (
    *("cb_asid_changed", "ppp", "disable_ppp", "enable_callback", "disable_callback", "load_plugin", "run"),
    *("end_analysis", "stop_run", "physical_memory_read", "virtual_memory_read", "address_to_ram_offset"),
    *("current_asid", "get_cpu", "delete_callback", "delete_callbacks"),
)


@pytest.mark.parametrize("name", METHODS)
def test_the_fake_has_what_pandare_has(name):
    if name.startswith("cb_"):  # made when a Panda is
        real, fake = pandare.Panda._generated_callback, FakePanda._generated_callback
        expected = list(inspect.signature(real).parameters)
        expected.remove("pandatype")
    else:
        real, fake = getattr(pandare.Panda, name), getattr(FakePanda, name)
        expected = list(inspect.signature(real).parameters)
    assert list(inspect.signature(fake).parameters) == expected


@pytest.mark.parametrize("name", ["get_reg", "get_pc"])
def test_the_fakes_registers_are_asked_as_pandares(name):
    from pandare.arch import X86_64Arch as Real

    expected = inspect.signature(getattr(Real, name)).parameters
    assert list(inspect.signature(getattr(X86_64Arch, name)).parameters) == list(expected)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_pandare_over_a_stand_in(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hypervisors.panda_real", str(tmp_path)],
        check=False,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in seen, seen
    assert seen.pop("asids") > 1
    assert seen.pop("registers") >= 20
    assert seen == {
        "segments": [[0, 0xA0000], [0x100000, (8 << 20) - 0x100000]],
        "info": [8 << 20, 1],
        "bases": [0x1234000, 0x5678000],
        "stands": True,
        "before it happens": True,
        "calls": [[11, "COMPAT", 0x400100], [59, "NATIVE", 0x400000]],
        "number in a register": True,
        "flags": True,
        "moved": [True, True, True],
        "recorded": True,
        "lost": [0, 0],
        "callbacks left": 0,
        "called while nothing is wanted": 0,
        "timeouts": True,
        "gone": True,
        "returned": True,
        "forbidden": 0,
    }
