"""The kernels that the lab boots, as data."""

from __future__ import annotations

import lzma
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .apt import Apt
from .errors import FetchError

_KERNEL_PACKAGE = re.compile(
    r"linux-(image|base|binary|modules)-\d\S*-(cloud|rt)-amd64|linux-base-cloud-amd64"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One row of the table: a name, and where a Debian suite has that kernel's image."""

    name: str
    suite: str
    holder: str = "image"
    """Which of the packages ``linux-<holder>-VERSION-<flavour>-amd64`` has the image."""
    image: str = "boot/vmlinuz-*"
    flavour: str = "cloud"

    @property
    def meta(self) -> str:
        """The package that always depends on the suite's newest kernel."""
        return f"linux-image-{self.flavour}-amd64"


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="5.10", suite="bullseye"),
        Kernel(name="6.1", suite="bookworm"),
        Kernel(name="6.12", suite="trixie"),
        # PREEMPT_RT: locks, and with them the structures that hold one, are larger.
        Kernel(name="6.12-rt", suite="trixie", flavour="rt"),
        # From 7.x on Debian splits the image from its modules.
        Kernel(name="7.2", suite="sid", holder="binary", image="usr/lib/modules/*/vmlinuz"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A kernel in the cache."""

    name: str
    vmlinuz: Path
    release: str
    """What ``uname -r`` says in the guest. A suite moves on: this may be newer than the name says."""
    package: str


def fetch(name: str) -> Image:
    """Return the kernel *name* of the table, fetched into the cache if it is not there yet."""
    if name not in KERNELS:
        raise FetchError(f"no kernel {name!r} in the lab's table: choose one of {', '.join(KERNELS)}")
    directory = cache.publish(cache.root() / "kernels" / name, lambda work: _build(KERNELS[name], work))
    release, package = (directory / "release").read_text().split()
    return Image(name=name, vmlinuz=directory / "vmlinuz", release=release, package=package)


def module(name: str, file: str) -> bytes:
    """The module *file* (``overlay.ko``) of the kernel *name* of the table, from its own package."""
    package = fetch(name).package.replace("linux-binary-", "linux-modules-")
    found = sorted(Apt(KERNELS[name].suite).unpack(package).rglob(f"{file}*"))
    if len(found) != 1:
        raise FetchError(f"package {package} has no {file}: is it built into this kernel, or gone from it?")
    data = found[0].read_bytes()
    return lzma.decompress(data) if found[0].suffix == ".xz" else data


def _build(kernel: Kernel, work: Path) -> None:
    apt = Apt(kernel.suite)
    package = _image_package(apt, kernel)
    (work / "files").mkdir()
    apt.unpack_into(package, work / "files")
    images = sorted((work / "files").glob(kernel.image))
    if len(images) != 1:
        raise FetchError(
            f"package {package} has no {kernel.image}: correct the row {kernel.name} in kernels.py"
        )
    images[0].rename(work / "vmlinuz")
    release = package.removeprefix(f"linux-{kernel.holder}-")
    (work / "release").write_text(f"{release} {package}\n")
    shutil.rmtree(work / "files")


def _image_package(apt: Apt, kernel: Kernel) -> str:
    """Follow the meta package's dependencies to the package with the image."""
    wanted = re.compile(rf"linux-{kernel.holder}-\d\S*-{kernel.flavour}-amd64")
    seen: list[str] = [kernel.meta]
    for name in seen:  # grows while we walk it
        if wanted.fullmatch(name):
            return name
        seen += [new for new in apt.depends(name) if new not in seen and _KERNEL_PACKAGE.fullmatch(new)]
    raise FetchError(
        f"suite {kernel.suite} has no package linux-{kernel.holder}-*-{kernel.flavour}-amd64: "
        f"correct the row {kernel.name} in kernels.py"
    )
