"""Compiles the trap plugin where there is a C compiler.

The result is kept in the user's cache directory under a name that holds the hash of its sources, so that a
new version is never mistaken for an old one.  No header of QEMU or GLib is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from live.core.errors import TargetError

SOURCES = ("trap.c", "control.c", "tb.c", "events.c", "filter.c", "vcpu.c")
HEADERS = ("control.h", "tb.h", "events.h", "filter.h", "vcpu.h", "wire.h", "abi.h")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
NAME = "pse-trap"
"""How the file's name begins; `live.hypervisors.qemu.discover` tells the plugin by it."""


def cache_directory() -> Path:
    """Where built plugins are kept."""
    return Path(platformdirs.user_cache_dir("pse")) / "plugin"


def source_hash(directory: Path | None = None) -> str:
    """Twelve hexadecimal digits over the sources and the flags."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in (*HEADERS, *SOURCES):
        digest.update(((directory or Path(__file__).parent) / name).read_bytes())
    return digest.hexdigest()[:12]


def compiler() -> str | None:
    """``$CC``, ``cc``, ``gcc`` or ``clang``, whichever is there first."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    return None


def build(cache: Path | None = None) -> Path:
    """The compiled plugin; compiles it if it is not in the cache.

    Raises `TargetError` without a compiler or when it fails.
    """
    cache = cache or cache_directory()
    result = cache / f"{NAME}-{source_hash()}.so"
    if result.exists():
        return result
    command = compiler()
    if command is None:
        raise TargetError(
            "Plugin mode needs a C compiler to build its trap plugin once; install gcc (or set CC), "
            "or use --mode gdbstub."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        output = Path(directory) / result.name
        source = Path(__file__).parent
        run = subprocess.run(
            [command, *FLAGS, *(str(source / name) for name in SOURCES), "-o", str(output)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            first = (run.stderr.strip() or "no message").splitlines()[0]
            raise TargetError(
                f"The trap plugin does not compile with {command} ({first}); use --mode gdbstub."
            )
        output.replace(result)  # atomic: another process may build the same
    return result


def argument(socket: str | os.PathLike[str], plugin: Path | None = None) -> str:
    """What follows QEMU's ``-plugin`` to load the plugin, listening at ``socket``."""
    return f"file={plugin or build()},socket={os.fspath(socket)}".replace("\n", "")
