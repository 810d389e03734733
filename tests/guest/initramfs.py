"""The guest's whole file system: busybox, and the lab's programs compiled when first needed.

Everything in the archive depends only on its inputs (no times, no inode numbers of the host), so the same
inputs give the same bytes, and the archive is cached under the hash of its inputs.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import cache, compiler
from .apt import Apt
from .errors import FetchError

PROGRAMS = Path(__file__).with_name("programs")
# -no-pie: int80.c and x32.c hand addresses of their data to 32-bit system calls.
_CFLAGS = ("-static", "-no-pie", "-O2", "-s", "-pthread", "-Wall", "-Wextra")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of the archive; the type of *mode* is S_IFDIR, S_IFREG, S_IFLNK or S_IFCHR."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def newc(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Write a cpio archive in the "newc" format (driver-api/early-userspace/buffer-format.rst)."""
    trailer = Entry(name="TRAILER!!!", mode=0)
    for number, entry in enumerate([*entries, trailer], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if entry.mode & 0o170000 == 0o040000 else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        yield _padded(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        yield _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build(*, stress: bool = False) -> Path:
    """Return the initramfs, built if its inputs changed; *stress* adds stress-ng and its libraries."""
    busybox = Apt("bookworm").unpack("busybox-static") / "bin" / "busybox"
    sources = sorted(PROGRAMS.glob("*.[ch]"))
    digest = hashlib.sha256(repr((1, _CFLAGS, str(busybox), stress)).encode())
    for file in (*sources, Path(__file__)):
        digest.update(file.name.encode() + file.read_bytes())
    directory = cache.root() / "initramfs" / digest.hexdigest()[:16]

    def fill(work: Path) -> None:
        files = [*_skeleton(), *_busybox(busybox), *_programs(sources, work)]
        if stress:
            files += _stress_ng(work)
        with (work / "initramfs.cpio").open("wb") as archive:
            archive.writelines(newc(files))

    return cache.publish(directory, fill) / "initramfs.cpio"


def _skeleton() -> Iterator[Entry]:
    for name in (
        "bin",
        "sbin",
        "dev",
        "proc",
        "sys",
        "tmp",
        "etc",
        "programs",
        "lib",
        "lib/x86_64-linux-gnu",
        "lib64",
    ):
        yield Entry(name=name, mode=0o041777 if name == "tmp" else 0o040755)
    yield Entry(name="dev/console", mode=0o020600, device=(5, 1))
    yield Entry(
        name="etc/passwd",
        mode=0o100644,
        data=b"root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )
    yield Entry(name="etc/group", mode=0o100644, data=b"root:x:0:\nnogroup:x:65534:\n")


def _busybox(busybox: Path) -> Iterator[Entry]:
    yield Entry(name="bin/busybox", mode=0o100755, data=busybox.read_bytes())
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in sorted({*names} - {"busybox"}):
        yield Entry(name=f"bin/{name}", mode=0o120777, data=b"busybox")


def _programs(sources: list[Path], work: Path) -> Iterator[Entry]:
    found = compiler.find()
    for source in sources:
        if source.suffix != ".c":
            continue
        binary = work / "binary"
        # A first comment that starts with options has more of them for this file.
        extra = re.findall(r"(?<!\S)-\w+", source.read_text().splitlines()[0].removeprefix("/*"))
        found.compile(source, binary, (*_CFLAGS, *extra))
        name = "init" if source.stem == "init" else f"programs/{source.stem}"
        yield Entry(name=name, mode=0o100755, data=binary.read_bytes())
        binary.unlink()


def _stress_ng(work: Path) -> Iterator[Entry]:
    """stress-ng is not static in Debian, so its libraries come along."""
    apt = Apt("bookworm")
    root = work / "stress"
    root.mkdir()
    apt.unpack_all(apt.closure(["stress-ng"]), root)
    # Links between libraries are relative; an absolute one would lead out of the tree, to the machine's own.
    inside = (path for path in root.rglob("*") if path.resolve().is_relative_to(root.resolve()))
    files = {path.name: path.resolve() for path in inside if path.is_file()}
    wanted = ["stress-ng", "ld-linux-x86-64.so.2"]
    for name in wanted:  # grows while we walk it
        file = files.get(name)
        if file is None:
            raise FetchError(f"stress-ng needs {name}, which no package of it has: boot without stress-ng")
        dynamic = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
        wanted += [new for new in re.findall(r"NEEDED.*\[(.+)\]", dynamic) if new not in wanted]
        # Where Debian's dynamic linker looks.
        place = {"stress-ng": "bin", wanted[1]: "lib64"}.get(name, "lib/x86_64-linux-gnu")
        yield Entry(name=f"{place}/{name}", mode=0o100755, data=file.read_bytes())
    shutil.rmtree(root)
