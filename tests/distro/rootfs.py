"""Debian's root file system, made once by mmdebstrap from the machine's own apt sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.distro.kernels import make_ext4
from tests.guest import cache
from tests.guest.apt import Apt
from tests.guest.errors import FetchError

SUITE = "bookworm"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "cron",
    "nginx-light",
    "gcc",
    "libc6-dev",
    "make",
    "podman",
    "crun",
    "fuse-overlayfs",
    "util-linux",
    "procps",
    "kmod",
    "iproute2",
    "sudo",
    "stress-ng",
    "busybox-static",
)
_OPTIONS = (
    "--mode=root",
    "--format=directory",
    "--variant=minbase",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=force-unsafe-io",
    '--aptopt=Acquire::Languages "none"',
)
_FILES = {
    "etc/hostname": "distro\n",
    "etc/hosts": "127.0.0.1 localhost distro\n",
    "etc/fstab": "",
    # A known one: with an empty one the boot is a "first boot" that asks questions.
    "etc/machine-id": "c0ffee00c0ffee00c0ffee00c0ffee00\n",
    "etc/sudoers.d/tester": "tester ALL=(ALL:ALL) NOPASSWD: ALL\n",
    "etc/cron.d/lab": "* * * * * tester cd /tmp && /bin/sleep 1\n@reboot www-data /usr/bin/id > /dev/null\n",
    "etc/containers/containers.conf": (
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "crun"\n'
    ),
}
_SCRIPT = """
set -e
useradd --create-home --shell /bin/bash tester
passwd -q -d root
systemctl -q disable e2scrub_reap.service fstrim.timer apt-daily.timer apt-daily-upgrade.timer || true
systemctl -q mask getty@tty1.service || true
"""


def build() -> Path:
    """The image of the file system, made if it is not in the cache: half a minute, and half a GiB."""
    digest = hashlib.sha256(repr((2, SUITE, PACKAGES, _OPTIONS, _FILES, _SCRIPT)).encode()).hexdigest()[:16]
    return cache.publish(cache.root() / "distro" / "root" / digest, _make) / "root.ext4"


def _make(work: Path) -> None:
    if os.geteuid() != 0:
        raise FetchError(
            "Debian's root file system is made in a chroot: run it once as root, or set PSE_LAB_CACHE "
            "to a cache that has it"
        )
    apt = Apt(SUITE)
    tools = apt.unpack("mmdebstrap") / "usr" / "bin"
    apt.config  # noqa: B018 - reads the lists, and writes the sources
    tree = work / "tree"
    done = subprocess.run(
        ["perl", str(tools / "mmdebstrap"), *_OPTIONS, f"--include={','.join(PACKAGES)}", "", str(tree), "-"],
        input=(apt.directory / "sources.list").read_text(),
        env={**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no message"]
        raise FetchError(
            f"mmdebstrap made no Debian {SUITE} ({errors[0]}): "
            "check the network, the machine's apt sources, and that this machine may chroot and mount"
        )
    for name, text in _FILES.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tree / "etc/sudoers.d/tester").chmod(0o440)
    subprocess.run(["chroot", str(tree), "/bin/sh", "-c", _SCRIPT], check=True, capture_output=True)
    make_ext4(tree, work / "root.ext4", spare_mib=512)
    shutil.rmtree(tree)
