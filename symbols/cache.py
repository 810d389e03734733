"""The cache of symbol tables: found by banner and build-id, written atomically, safe for many processes.

Theory of operation
-------------------
A table's file is ``linux/<release>-<key>[-full].json`` in the cache directory, so that Volatility's ``-s
DIRECTORY`` works on it.  The key is a hash of banner, build-id and the version of the generator, so the
content under a name never changes.  Volatility's index of banners relies on that: it notices a replaced file
days later.  Beside the tables, ``<release>-<key>.landmarks`` has what is needed to recognise the kernel in
RAM (`symbols.landmarks`).

Files are written under a temporary name in the same directory and then renamed.  A reader sees all of a file
or nothing, and two writers of one name write the same bytes, so no lock is needed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from live.core.errors import TargetError
from symbols.isf import Json
from symbols.landmarks import Landmarks

GENERATION = "2"
"""Version of the generator's output.  A new value hides older files, which `Cache.prune` removes."""

VARIABLE = "PSE_SYMBOLS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A cached table: ``size`` in bytes, last use ``used`` in seconds since the epoch."""

    path: Path
    banner: str
    build_id: str
    full: bool
    size: int
    used: float
    current: bool
    """Whether it was made by this version of the generator."""


class Cache:
    """A directory of symbol tables; ``vol -s DIRECTORY`` works on it."""

    def __init__(self, directory: Path) -> None:
        """``directory`` need not exist yet."""
        self.directory = directory
        self._landmarks: dict[Path, Landmarks] = {}

    @classmethod
    def default(cls) -> Cache:
        """``$PSE_SYMBOLS``, or ``symbols`` in the user's cache directory."""
        given = os.environ.get(VARIABLE)
        if given:
            return cls(Path(given))
        import platformdirs  # noqa: PLC0415 - 20 ms that a given directory does not need

        return cls(Path(platformdirs.user_cache_dir("pse")) / "symbols")

    @property
    def tables(self) -> Path:
        """The directory that holds the files."""
        return self.directory / "linux"

    def find(self, banner: str, build_id: str | None, *, full: bool = False) -> Path | None:
        """The file of a kernel's table, or None; marks it as used."""
        path = self.tables / (stem(banner, build_id) + ("-full.json" if full else ".json"))
        if not path.is_file():
            return None
        with contextlib.suppress(OSError):  # a read-only cache serves as well
            os.utime(path)
        return path

    def store(self, marks: Landmarks, table: Json, *, full: bool = False) -> Path:
        """Write a table and its landmarks; return the table's path.  Raises `TargetError`."""
        name = stem(marks.banner, marks.build_id)
        path = self.tables / (name + ("-full.json" if full else ".json"))
        write_atomically(path, json.dumps(table, separators=(",", ":")).encode("ascii"))
        write_atomically(self.tables / (name + ".landmarks"), json.dumps(marks.to_json()).encode("ascii"))
        return path

    def landmarks(self) -> Iterator[Landmarks]:
        """Landmarks of all cached kernels, the most recently used first; unreadable files are skipped."""
        for path in self._files("*.landmarks"):
            if path not in self._landmarks:
                try:
                    self._landmarks[path] = Landmarks.from_json(json.loads(path.read_bytes()))
                except (OSError, ValueError):
                    continue
            yield self._landmarks[path]

    def entries(self) -> list[Entry]:
        """All cached tables, the most recently used first."""
        result = []
        for path in self._files("*.json"):
            name = path.name.removesuffix(".json")
            full = name.endswith("-full")
            marks = path.with_name(name.removesuffix("-full") + ".landmarks")
            try:
                known = Landmarks.from_json(json.loads(marks.read_bytes()))
                status = path.stat()
            except (OSError, ValueError):
                continue
            result.append(
                Entry(
                    path=path,
                    banner=known.banner,
                    build_id=known.build_id,
                    full=full,
                    size=status.st_size,
                    used=status.st_mtime,
                    current=marks.stem == stem(known.banner, known.build_id),
                )
            )
        return result

    def prune(self, *, days: float = 90.0, keep: int | None = None, everything: bool = False) -> list[Path]:
        """Remove tables; return the paths that were removed.

        Removed are tables that were not used for ``days``, all but the ``keep`` most recently used, those of
        another version of the generator, files left by killed writers; or, with ``everything``, all.  A table
        that another process has open stays readable to it.
        """
        now = time.time()
        removed = []
        kept: set[str] = set()
        for number, entry in enumerate(self.entries()):
            stale = (
                not entry.current or now - entry.used > days * 86400 or (keep is not None and number >= keep)
            )
            if everything or stale:
                removed.append(entry.path)
            else:
                kept.add(entry.path.name.removesuffix(".json").removesuffix("-full"))
        removed.extend(path for path in self._files("*.landmarks") if path.stem not in kept)
        removed.extend(path for path in self._files(".tmp-*") if now - _mtime(path) > 3600)
        for path in removed:
            with contextlib.suppress(OSError):
                path.unlink()
        self._landmarks.clear()
        return removed

    def _files(self, pattern: str) -> list[Path]:
        try:
            return sorted(self.tables.glob(pattern), key=lambda path: (-_mtime(path), path.name))
        except OSError:
            return []


@functools.cache
def _generation() -> str:
    """`GENERATION` and a hash of the list of pruned types, which also determines the tables."""
    types = resources.files("symbols").joinpath("pruned_types.txt").read_bytes()
    return f"{GENERATION} {hashlib.sha256(types).hexdigest()}"


def stem(banner: str, build_id: str | None) -> str:
    """File name, without suffix, of a kernel's table."""
    kind = "\0".join((_generation(), banner, build_id or ""))
    key = hashlib.sha256(kind.encode("latin-1")).hexdigest()[:20]
    words = banner.split()
    release = re.sub(r"[^A-Za-z0-9.+_-]", "_", words[2])[:64] if len(words) > 2 else "unknown"
    return f"{release.lstrip('.')}-{key}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader never sees a part of it.  Raises `TargetError`."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise TargetError(
            f"the symbol table cannot be written to {path} ({error.strerror}): make room or set "
            f"{VARIABLE} to a "
            "directory that can be written"
        ) from error


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
