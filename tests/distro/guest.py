"""A guest that is a Debian: the lab's agent sets it up from the initramfs, and stays behind there."""

from __future__ import annotations

import re
import shlex
import time
import zlib

from tests.distro import calls, initramfs, kernels, rootfs
from tests.guest import Guest, GuestSpec
from tests.guest.channel import Job, Result
from tests.guest.errors import GuestTimeout

BOOT_TIMEOUT = 420.0
_IN = ["chroot", "/proc/1/root", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]


def spec(*, cpus: int, plugins: tuple[str, ...] = (), memory: int = 2048) -> GuestSpec:
    """A guest with room for it; the kernel and the disks are the guest's own."""
    return GuestSpec(
        cpus=cpus, plugins=plugins, memory=memory, append="rdinit=/first systemd.show_status=0 loglevel=3"
    )


class Distro(Guest):
    """``with Distro(spec(cpus=1), "6.1-generic") as guest``: then at the prompt of the initramfs."""

    def __init__(self, wanted: GuestSpec, kernel: str) -> None:
        image = kernels.fetch(kernel)
        self._disks = (rootfs.build(), kernels.modules(image))
        super().__init__(wanted, kernel=image, archive=initramfs.build(image))

    def _arguments(self, agent: int, monitor: int) -> list[str]:
        arguments = super()._arguments(agent, monitor)
        for number, disk in enumerate(self._disks):
            # What the guest writes is in a file that nobody else sees, and goes with QEMU.
            arguments += ["-drive", f"file={disk},format=raw,if=none,id=disk{number},snapshot=on"]
            arguments += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        return arguments

    def prepare(self) -> None:
        """Load modules, mount the disks, and begin to look at processes."""
        self.run("for module in /modules/*; do insmod $module || exit 1; done", timeout=120)
        self.run(
            "set -e; n=0; until [ -b /dev/vdb ]; do n=$((n+1)); [ $n -lt 100 ]; usleep 100000; done; "
            "mount -t ext4 /dev/vda /newroot; mkdir -p /newroot/usr/lib/modules; "
            "mount -t ext4 -o ro /dev/vdb /newroot/usr/lib/modules",
            timeout=60,
        )
        # What a tracer that is told of system calls records of them: only those that change what is compared.
        wanted = " || ".join(f"id == {number}" for number in sorted(calls.RECORDED))
        self.push(wanted.encode(), "/sys/kernel/tracing/events/raw_syscalls/sys_enter/filter")
        libraries = "/newroot/usr/lib/x86_64-linux-gnu/libc.so.6 /newroot/etc/ld.so.cache"
        self._looks = self.start(f"exec looks /looks {libraries}")
        deadline = time.monotonic() + 30
        while "ready" not in self._looks.output:
            if not self._looks.running or time.monotonic() > deadline:
                raise GuestTimeout(self._diagnose(f"looks did not begin: {self._looks.output}"))
            time.sleep(0.05)

    def boot(self, timeout: float = BOOT_TIMEOUT) -> str:
        """Become Debian, and wait until systemd says how its start has ended."""
        self.push(b"/newroot\n", "/go")
        deadline = time.monotonic() + timeout
        while self.run("test -S /proc/1/root/run/systemd/private", check=False).status:
            if time.monotonic() > deadline:
                raise GuestTimeout(self._diagnose(f"systemd did not begin within {timeout:g} s"))
            time.sleep(0.5)
        return self.inside("systemctl is-system-running --wait", timeout=timeout, check=False).output.strip()

    def start_inside(self, command: str) -> Job:
        """Start a shell line in the distribution, as root, outside of every unit."""
        return self.start([*_IN, "/bin/bash", "-c", command])

    def inside(self, command: str, *, timeout: float = 300, check: bool = True) -> Result:
        """Run a shell line in the distribution to its end."""
        job = self.start_inside(command)
        try:
            return job.wait(timeout, check=check)
        except GuestTimeout:
            job.kill()
            raise

    def unit(self, command: str, *, timeout: float = 300, check: bool = True) -> Result:
        """The same in a unit of its own."""
        return self.inside(
            f"systemd-run -q --wait --pipe /bin/bash -c {shlex.quote(command)}", timeout=timeout, check=check
        )

    def looks(self) -> str:
        """End the looking; what was written down."""
        time.sleep(0.5)  # it writes at its leisure
        self._looks.kill(15)
        self._looks.wait(check=False)
        packed = self.start("gzip -1 -c /looks").wait(600).data
        return zlib.decompress(packed, wbits=31).decode()

    @property
    def failed_units(self) -> list[str]:
        said = self.inside("systemctl --failed --plain --no-legend", check=False).output
        return re.findall(r"(?m)^(\S+\.\w+)", said)
