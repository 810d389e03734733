"""Which QEMU runs the guests: the machine's own, one installed for the purpose, or one in the cache.

QEMU 10 is what the lab wants: its plugins read registers, and it is reliable with several vCPUs. Bookworm has
7.2 (the compatibility case) and 10.0 in backports. A QEMU in the cache runs beside an installed one of
another version if it finds its *own* modules, firmware and libraries: the accelerator and the devices are
modules, and it refuses, or crawls without, modules of another build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import cache
from .apt import Apt, library_path
from .errors import FetchError

_BINARY = "qemu-system-x86_64"
_PACKAGES = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """A QEMU that can be started."""

    command: tuple[str, ...]
    version: str
    environment: dict[str, str] = field(default_factory=dict)
    origin: str = "installed"

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def find(name: str) -> Emulator:
    """Return the emulator *name* (``10``: 9.0 or newer; ``7.2``), installing or unpacking it if need be.

    ``PSE_LAB_QEMU=unpacked`` never looks at, and never changes, what is installed.
    """
    if name == "7.2":
        installed = _installed()
        if installed and installed.version.startswith("7.2."):
            return installed
        return _unpacked("7.2", ("bookworm",))
    if name != "10":
        raise FetchError(f"no QEMU {name!r} in the lab: choose 10 or 7.2")
    suites = _suites()
    if os.environ.get("PSE_LAB_QEMU") != "unpacked":
        installed = _installed()
        if installed and installed.major >= 9:
            return installed
        if os.geteuid() == 0:
            # Two processes at once: the second one finds it installed.
            with cache.locked(cache.root() / "install"):
                installed = _installed()
                if not installed or installed.major < 9:
                    Apt(*suites).install(_PACKAGES, target=suites[-1])
                    installed = _installed()
            if installed and installed.major >= 9:
                return installed
    return _unpacked("10", suites)


def _suites() -> tuple[str, ...]:
    """Where this machine gets QEMU 9 or newer from: bookworm from its backports, later releases have it."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        text = ""
    found = re.search(r"(?m)^VERSION_CODENAME=\"?(\w+)", text)
    release = found[1] if found else "bookworm"
    return (release,) if release in ("trixie", "forky", "sid") else ("bookworm", "bookworm-backports")


def _installed() -> Emulator | None:
    binary = shutil.which(_BINARY)
    return Emulator(command=(binary,), version=_version((binary,), {})) if binary else None


def _unpacked(name: str, suites: Sequence[str]) -> Emulator:
    root = Apt(*suites).unpack_tree(f"qemu-{name}", _PACKAGES)
    environment = {
        "LD_LIBRARY_PATH": library_path(root),
        "QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu"),
    }
    command = (str(root / "usr/bin" / _BINARY),)
    version = _version(command, environment)
    data = ("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios"))
    return Emulator(command=(*command, *data), version=version, environment=environment, origin="unpacked")


def _version(command: tuple[str, ...], environment: dict[str, str]) -> str:
    """Ask a QEMU for its version."""
    done = subprocess.run(
        [*command, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    found = re.search(r"version (\d+\.\d+\.\d+)", done.stdout)
    if not found:
        raise FetchError(f"{command[0]} does not run ({done.stderr.strip()}): reinstall QEMU 9 or newer")
    return found[1]
