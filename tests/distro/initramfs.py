"""The lab's initramfs, and in a second archive what a distribution needs before its own first process."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.distro.kernels import boot_modules
from tests.guest import cache, compiler, initramfs
from tests.guest.initramfs import Entry, newc
from tests.guest.kernels import Image

_PROGRAMS = Path(__file__).with_name("programs")
_CFLAGS = ("-static", "-O2", "-s", "-Wall", "-Wextra")


def build(kernel: Image) -> Path:
    """Both archives in one file, which the kernel unpacks one after the other."""
    base = initramfs.build()
    sources = sorted(_PROGRAMS.glob("*.c"))
    modules = boot_modules(kernel)
    digest = hashlib.sha256(repr((1, _CFLAGS, str(base), kernel.package)).encode())
    for file in (*sources, *modules, Path(__file__)):
        digest.update(file.name.encode() + file.read_bytes())

    def fill(work: Path) -> None:
        entries = [Entry(name="modules", mode=0o040755), Entry(name="newroot", mode=0o040755)]
        found = compiler.find()
        for source in sources:
            binary = work / "binary"
            found.compile(source, binary, _CFLAGS)
            name = "first" if source.stem == "first" else f"programs/{source.stem}"
            entries.append(Entry(name=name, mode=0o100755, data=binary.read_bytes()))
            binary.unlink()
        entries += [Entry(name=f"modules/{m.name}", mode=0o100644, data=m.read_bytes()) for m in modules]
        with (work / "initramfs.cpio").open("wb") as archive:
            archive.write(base.read_bytes())
            archive.writelines(newc(entries))

    return (
        cache.publish(cache.root() / "distro" / "initramfs" / digest.hexdigest()[:16], fill)
        / "initramfs.cpio"
    )
