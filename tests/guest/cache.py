"""The lab's cache: fetched or built once, published atomically, safe for several processes at once."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from .errors import FetchError


def root() -> Path:
    """Directory of the cache: ``$PSE_LAB_CACHE``, or ``pse-lab`` in the user's cache directory."""
    chosen = os.environ.get("PSE_LAB_CACHE")
    path = Path(chosen).absolute() if chosen else Path(platformdirs.user_cache_dir("pse-lab"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"the lab's cache {path} cannot be created ({error.strerror}): "
            "set PSE_LAB_CACHE to a directory that is writable"
        ) from error
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to *path*; released by the kernel when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def publish(path: Path, build: Callable[[Path], None]) -> Path:
    """Return the directory *path*, calling ``build(empty directory)`` first if it does not exist yet.

    A build that fails or is killed leaves nothing under *path*: it appears by one rename, complete.
    """
    if path.is_dir():
        return path
    with locked(path):
        if path.is_dir():
            return path
        # The lock is ours, so what an earlier, killed build of the same thing left behind is garbage.
        for stale in path.parent.glob(f".{path.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            build(work)
            work.chmod(0o755)
            work.rename(path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path
