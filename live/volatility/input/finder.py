"""Finds the running kernel in memory, and its symbol table.

It also reports what Volatility does not: input that is no memory image, RAM files with a PCI hole, and the
user's symbol tables for another build of the same release.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from volatility3.framework.automagic import symbol_cache

from live.core.errors import NoKernelFound
from live.core.memory import MemoryReader, Run
from live.core.text import printable
from live.volatility.input.memory import FileMemory
from symbols import ram_file
from symbols.cache import Cache
from symbols.guest import Kernel, find_kernel, symbol_table

vollog = logging.getLogger(__name__)

Progress = Callable[[float, str], None]

_UNREADABLE = (
    (
        b"KDUMP   ",
        "a kdump-compressed dump, which Volatility cannot read; take it again as ELF "
        "(dump-guest-memory without -z, -l, -s; virsh dump --memory-only without --format), or convert it "
        "(makedumpfile -E)",
    ),
    (
        b"makedumpfile\0",
        "a flattened kdump, which Volatility cannot read; rearrange it first (makedumpfile -R OUT < IN), "
        "then convert it to ELF (makedumpfile -E)",
    ),
    (b"DISKDUMP", "a diskdump, which Volatility cannot read; take the memory again as ELF or raw"),
    (
        b"LibvirtQemudSave",
        "a domain save file (virsh save); take the memory with virsh dump --memory-only instead, which "
        "writes ELF",
    ),
    (b"\x1f\x8b\x08", "compressed with gzip; decompress it, or give its name the ending .gz"),
    (b"\xfd7zXZ\0", "compressed with xz; decompress it, or give its name the ending .xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first (zstd -d)"),
    (b"QFI\xfb", "a qcow2 disk image, not memory"),
)
HEADER = max(len(magic) for magic, _ in _UNREADABLE)


def unreadable(header: bytes) -> str | None:
    """The kind of a file that begins with ``header``, if it is no memory image; None if it may be one."""
    return next((text for magic, text in _UNREADABLE if header.startswith(magic)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A running kernel, and the memory in which its gpas are valid.

    ``low_end``: bytes of RAM below the PCI hole if the file lacks the hole, else None.
    """

    kernel: Kernel
    memory: MemoryReader
    low_end: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        if self.low_end is None or not isinstance(self.memory, FileMemory):
            return self.kernel.notes
        return (*self.kernel.notes, ram_file.describe(self.memory.runs) or "")


def find(memory: MemoryReader, *, cache: Cache | None = None, progress: Progress | None = None) -> Found:
    """The running kernel in ``memory``, which may be a raw RAM file without its PCI hole.

    Raises `NoKernelFound` or `SymbolsMissing`.
    """
    if not _plain_file(memory) or len(memory.view) <= min(ram_file.LOW_ENDS):
        return Found(kernel=find_kernel(memory, cache=cache, progress=progress), memory=memory)
    view = memory.view
    runs = ram_file.best(len(view), lambda runs: FileMemory(view, runs), from_start=True)
    if runs is not None:
        return _with_layout(view, runs, cache, progress)
    # No trampoline in any layout (a crash kernel, or it was overwritten): search all of RAM.
    failure: NoKernelFound | None = None
    for runs in ram_file.layouts(len(view)):
        try:
            return _with_layout(view, runs, cache, progress)
        except NoKernelFound as error:
            failure = failure or error
    raise failure or NoKernelFound("the file is empty; give the path of a memory image")


def _plain_file(memory: MemoryReader) -> TypeGuard[FileMemory]:
    return isinstance(memory, FileMemory) and memory.runs == (Run(0, 0, len(memory.view)),)


def _with_layout(
    view: memoryview, runs: tuple[Run, ...], cache: Cache | None, progress: Progress | None
) -> Found:
    memory = FileMemory(view, runs)
    kernel = find_kernel(memory, cache=cache, progress=progress)
    return Found(kernel=kernel, memory=memory, low_end=runs[0].length if len(runs) > 1 else None)


def table_url(
    found: Found, *, cache: Cache | None = None, full: bool = False, progress: Progress | None = None
) -> tuple[str, bool]:
    """(URL of a kernel's symbol table, whether it is ours).

    The user's table if its banner is equal, else ours: cached, or newly made.  ``full``: with every type of
    the kernel.  Raises `SymbolsMissing`.
    """
    own, near = users_table(found.kernel)
    if own is not None:
        vollog.info("using the user's symbol table %s", own)
        return own, False
    for location, banner in near:
        vollog.warning(
            "the symbol table %s is for another build of Linux %s (%s); the memory says %s: using one made "
            "from it",
            location,
            printable(found.kernel.release),
            printable(banner),
            printable(found.kernel.banner.strip()),
        )
    path = symbol_table(found.kernel, found.memory, cache, full=full, progress=progress)
    return path.absolute().as_uri(), True


def users_table(kernel: Kernel) -> tuple[str | None, list[tuple[str, str]]]:
    """(URL of the table that Volatility has indexed for the banner, or None; other tables of the release).

    The latter as (URL, banner).
    """
    try:
        known = symbol_cache.load_cache_manager().get_identifier_dictionary(operating_system="linux")
    except (ValueError, OSError):  # no cache file yet: no tables
        return None, []
    wanted = _bare(kernel.banner.encode("latin-1", "replace"))
    prefix = f"Linux version {kernel.release} (".encode("latin-1", "replace")
    near = []
    for banner, location in known.items():
        if banner is None or not location:
            continue
        bare = _bare(banner)
        if bare == wanted:
            return str(location), []
        if bare.startswith(prefix):
            near.append((str(location), bare.decode("latin-1")))
    return None, near


def _bare(banner: Any) -> bytes:
    """A banner without trailing newline and NUL, which dwarf2json keeps."""
    return bytes(banner).rstrip(b"\0\n ")
