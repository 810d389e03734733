"""Debian's kernels with their modules: the lab's own rows, and of each the generic and the real-time one."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from pathlib import Path

from tests.guest import cache
from tests.guest.apt import Apt, library_path
from tests.guest.errors import FetchError
from tests.guest.kernels import KERNELS, Image

FLAVOURS = {"cloud": "linux-image-cloud-amd64", "generic": "linux-image-amd64", "rt": "linux-image-rt-amd64"}
NAMES = tuple(name if flavour == "cloud" else f"{name}-{flavour}" for name in KERNELS for flavour in FLAVOURS)

_PACKAGE = re.compile(r"linux-(image|base|binary|modules)-(\d\S*?-)?((cloud|rt)-)?amd64")
_BOOT = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""What a kernel needs to mount its root, in this order; some of it may be built in."""
_LEFT_OUT = ("gpu", "media", "infiniband", "staging", "iio", "scsi", "isdn", "hid", "input", "usb", "mtd")
"""Drivers that no guest of the lab has a device for: half of a generic kernel's modules."""


def fetch(name: str) -> Image:
    """The kernel ``name``; beside its ``vmlinuz`` are ``modules.ext4`` and ``boot/``, see below."""
    if name not in NAMES:
        raise FetchError(f"no kernel {name!r} for a distribution: choose one of {', '.join(NAMES)}")
    directory = cache.publish(cache.root() / "distro" / "kernels" / name, lambda work: _build(name, work))
    release, package = (directory / "release").read_text().split()
    return Image(name=name, vmlinuz=directory / "vmlinuz", release=release, package=package)


def modules(image: Image) -> Path:
    """A file system with what belongs into /lib/modules."""
    return image.vmlinuz.with_name("modules.ext4")


def boot_modules(image: Image) -> list[Path]:
    """The modules that the kernel needs to mount its root, not compressed, in the order to load them."""
    return sorted(image.vmlinuz.with_name("boot").iterdir())


def _build(name: str, work: Path) -> None:
    version, _, flavour = name.partition("-")
    apt = Apt(KERNELS[version].suite)
    meta = FLAVOURS[flavour or "cloud"]
    packages = _packages(apt, meta)
    files = work / "files"
    files.mkdir()
    for package in packages:
        apt.unpack_into(package, files)
    images = [*files.glob("boot/vmlinuz-*"), *files.glob("usr/lib/modules/*/vmlinuz")]
    if len(images) != 1:
        raise FetchError(f"{meta} of {apt.suites[0]} has {len(images)} kernels, not one: correct kernels.py")
    shutil.copy(images[0], work / "vmlinuz")
    places = [*files.glob("lib/modules/*/kernel"), *files.glob("usr/lib/modules/*/kernel")]
    release = places[0].parent.name if places else packages[0].removeprefix("linux-image-")
    _modules(release, places, work)
    (work / "release").write_text(f"{release} {packages[0]}\n")
    shutil.rmtree(files)


def _packages(apt: Apt, meta: str) -> list[str]:
    """The packages with the files of the kernel that ``meta`` depends on, the image first."""
    seen = [meta]
    for name in seen:  # grows while we walk it
        seen += [new for new in apt.depends(name) if new not in seen and _PACKAGE.fullmatch(new)]
    found = [name for name in seen if re.match(r"linux-\w+-\d", name)]
    if not found:
        raise FetchError(f"{meta} of {apt.suites[0]} leads to no kernel: check the machine's apt sources")
    return found


def _modules(release: str, places: list[Path], work: Path) -> None:
    tree = work / "tree"
    target = tree / "lib" / "modules" / release
    target.mkdir(parents=True)
    for place in places:
        for name in _LEFT_OUT:
            shutil.rmtree(place / "drivers" / name, ignore_errors=True)
        for each in place.parent.iterdir():
            if each.name != "vmlinuz":
                each.rename(target / each.name)
    _depmod(tree, release)
    (work / "boot").mkdir()
    for number, module in enumerate(_boot_order(target)):
        data = module.read_bytes()
        if module.suffix == ".xz":
            data = lzma.decompress(data)
        (work / "boot" / f"{number:02}-{module.name.split('.')[0]}.ko").write_bytes(data)
    make_ext4(tree / "lib" / "modules", work / "modules.ext4", spare_mib=16)
    shutil.rmtree(tree)


def _depmod(tree: Path, release: str) -> None:
    """Make the lists that modprobe goes by, with the machine's depmod or one in the cache."""
    root = Apt("bookworm").unpack_tree("kmod", ["kmod"])
    environment = {"LD_LIBRARY_PATH": library_path(root), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        ["depmod", "-b", str(tree), release],
        executable=root / "bin" / "kmod",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FetchError(f"depmod does not run here ({done.stderr.strip()}): install kmod")


def _boot_order(target: Path) -> list[Path]:
    """What ``_BOOT`` names and what that depends on, each after what it needs."""
    needs: dict[Path, list[Path]] = {}
    for line in (target / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[target / module] = [target / other for other in others.split()]
    by_name = {path.name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[Path] = []
    for name in _BOOT:
        if name in by_name:
            # modprobe's order: the last one first.
            order += [each for each in [*reversed(needs[by_name[name]]), by_name[name]] if each not in order]
    return order


def make_ext4(tree: Path, image: Path, *, spare_mib: int) -> None:
    """A file system with the files of ``tree`` and some room."""
    used = int(
        subprocess.run(["du", "-sm", tree], check=True, capture_output=True, text=True).stdout.split()[0]
    )
    size = used + used // 8 + spare_mib
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum_seed,^orphan_file", "-d", str(tree)]
    try:
        done = subprocess.run(
            [*command, str(image), f"{size}M"], capture_output=True, text=True, check=False, env=_SBIN
        )
    except FileNotFoundError as error:
        raise FetchError(
            "mke2fs is missing: install e2fsprogs, the guest's disks are made with it"
        ) from error
    if done.returncode:
        raise FetchError(
            f"mke2fs made no file system of {tree} ({done.stderr.strip()}): check the disk's room"
        )


_SBIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
