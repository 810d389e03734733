"""A stranger's package adds a hypervisor and an output, and nothing of ours is changed for it.

It is installed with pip into a directory of its own (no network), and found by its entry points.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.fixtures import Boot
from tests.volplugins import scene
from tests.watch import PSE, environment

HERE = Path(__file__).parent
NAME = "standing"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    directory = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(HERE / "pse_example", directory / "source")  # a build leaves things behind
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(directory / "target")]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "target"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guests are; one guest, as soon as `image` was asked for."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def image(images: Path, boot: Boot) -> Path:
    """The RAM of a lab guest, taken while it stood."""
    path = images / f"{NAME}.ram"
    if not path.exists():
        guest = boot()
        guest.stop()
        try:
            scene.copy_ram(guest, path)
        finally:
            guest.cont()
    return path


def run(target: Path, images: Path, *command: str) -> subprocess.CompletedProcess[str]:
    ours = environment()
    paths = os.pathsep.join([str(target), ours["PYTHONPATH"]])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**ours, "PYTHONPATH": paths, "PSE_EXAMPLE": str(images)},
        cwd=images,
    )


def pse(target: Path, images: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(target, images, *PSE, *arguments)


def test_it_is_found_by_its_entry_points(target: Path, images: Path) -> None:
    shown, without = (
        " ".join(pse(one, images, "watch", "--help").stdout.split()) for one in (target, Path())
    )
    assert re.search(r"SCHEME is [a-z, ]*, example;", shown)
    assert re.search(r"how to show events: table, [a-z, ]*, words \(", shown)
    assert ", example;" not in without
    assert ", words" not in without


def test_pse_vms(target: Path, images: Path, image: Path) -> None:
    done = pse(target, images, "vms")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [NAME, "-", "512", "MiB", "-", "-", "example", str(image)] in rows


def test_pse_ps(target: Path, images: Path, image: Path) -> None:
    done = pse(target, images, "ps", f"example:{NAME}", "--output", "words")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"This is {NAME}, watched in poll mode."
    assert "1 began, which is init." in lines
    assert "2 began, which is kthreadd." in lines
    assert lines[-1] == "That was all."
    assert f"pse: {NAME} is a file: nothing happens in it" in done.stderr


def test_pse_watch(target: Path, images: Path, image: Path) -> None:
    done = pse(target, images, "watch", f"example:{NAME}", "--duration", "0.5", "--output", "words")
    assert done.returncode == 0, done.stderr
    assert "1 began, which is init." in done.stdout.splitlines()
    assert "poll mode every 10 ms, memory mapped from a file, no copies" in done.stderr
    assert "the guest's clock stands still" in done.stderr
    refused = pse(target, images, "watch", f"example:{NAME}", "--mode", "plugin")
    assert refused.returncode == 1
    assert refused.stderr == f"pse: {NAME} cannot be watched in plugin mode; it can in: poll.\n"


def test_a_guest_that_is_not_there(target: Path, images: Path, image: Path) -> None:
    done = pse(target, images, "ps", "example:nobody")
    assert done.returncode == 1
    assert done.stderr == f"pse: There is no one example called nobody; there are: {NAME}.\n"


@pytest.mark.parametrize("plugin", [("linux.pslist",), ("linux.pse", "--duration", "1")])
def test_vol(target: Path, images: Path, image: Path, tmp_path: Path, plugin: tuple[str, ...]) -> None:
    done = scene.vol(
        *("-f", f"example:///{NAME}", *plugin),
        cwd=tmp_path,
        symbols=tmp_path / "symbols",
        pack=scene.packs()[0],
        PYTHONPATH=str(target),
        PSE_EXAMPLE=str(images),
    )
    assert done.status == 0, done.errors
    assert {(row["PID"], row.get("COMM") or row.get("Comm")) for row in done.rows} >= {(1, "init")}


def test_its_own_tests_pass_and_they_are_the_contract(target: Path, images: Path, image: Path) -> None:
    tests = HERE / "pse_example" / "test_contract.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = run(target, images, *command, f"--rootdir={images}", "--import-mode=importlib", str(tests))
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


def test_a_package_that_is_broken_is_a_sentence(target: Path, images: Path, tmp_path: Path) -> None:
    """One that cannot be imported, beside the one that can."""
    broken = tmp_path / "broken"
    metadata = broken / "pse_broken-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pse-broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[pse.hypervisors]\nbroken = pse_broken:NOTHING\n[pse.outputs]\nbroken = pse_broken:nothing\n"
    )
    (broken / "pse_broken.py").write_text("raise RuntimeError('no license')\n")
    both = Path(os.pathsep.join([str(broken), str(target)]))
    done = pse(both, images, "ps", "broken:x")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the hypervisor broken (pse_broken:NOTHING) cannot be loaded" in done.stderr
    assert "no license" in done.stderr
