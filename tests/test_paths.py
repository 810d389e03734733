"""Paths are what the guest's own kernel makes of them: the links of /proc, read by the process itself."""

import pytest

from live.linux.layout import field
from live.linux.paths import PathReader
from live.watch.session import Session
from tests.guest import Guest, kernels

KERNELS = [
    "5.10",
    "6.12",
    *(pytest.param(kernel, marks=pytest.mark.deep) for kernel in ("6.1", "7.2")),
]
UNREACHABLE = "(unreachable)"
CASES = {
    # case of programs/paths.c -> which of exe and cwd the process's root does not lead to
    "plain": (),
    "bind": (),
    "bind-file": (),
    "over": (),
    "chroot": (),
    "cwd-outside": ("cwd",),
    "exe-outside": ("exe",),
    "root-deleted": (),
    "pivot": (),
    "pivot-left": ("exe", "cwd"),
    "namespace": ("exe",),
    "unmounted": ("exe", "cwd"),
    "detached": ("exe", "cwd"),
    "escaped": ("cwd",),
    "deleted": (),
    "cwd-deleted": (),
    "memfd": (),
    "tmpfile": (),
    "deep": (),
    "overlay": (),
    "bytes-4095": (),
    "bytes-4096": (),
    "bytes-5000": (),
}
ENAMETOOLONG = "!36"
HELD = 40


def place(guest: Guest, case: str):
    """(job of `paths CASE`, what it says of its exe, of its cwd, and what getcwd says)."""
    job = guest.start(["paths", case])
    guest._channel.wait_for(lambda: job.output.endswith("there\n") or not job.running, 60, case)
    *lines, end = job.output.splitlines()
    assert end == "there", job.output
    return job, lines


def described(guest: Guest, pid: int):
    with Session(str(guest.monitor)) as session:
        task = next(t for t in session.os.kernel.snapshot(0, "").tasks if t.identity.pid == pid)
        return session.os.processes.describe(task)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_a_path_is_what_the_kernel_says(boot, kernel, case):
    guest = boot(kernel=kernel)
    if case == "overlay":
        guest.push(kernels.module(kernel, "overlay.ko"), "/tmp/overlay.ko")
        guest.run("insmod /tmp/overlay.ko; rm /tmp/overlay.ko")
    job, (exe, cwd, getcwd) = place(guest, case)
    try:
        process = described(guest, job.wait_pid())
        seen = {"exe": process.exe, "cwd": process.cwd}
        said = {
            name: None if text == ENAMETOOLONG else UNREACHABLE * (name in CASES[case]) + text
            for name, text in (("exe", exe), ("cwd", cwd))
        }
        assert seen == said
        if not getcwd.startswith("!"):
            assert process.cwd == getcwd, "getcwd marks what it cannot reach, too"
    finally:
        job.kill()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_file_without_a_place_has_the_name_that_its_file_system_gives(boot, kernel):
    guest = boot(kernel=kernel)
    job, said = place(guest, "fds")
    try:
        with Session(str(guest.monitor)) as session:
            linux = session.os.kernel
            task = next(t for t in linux.snapshot(0, "").tasks if t.identity.pid == job.wait_pid())
            follow = [
                linux.unpacker(kind, (field(member),))
                for kind, member in (("task_struct", "files"), ("files_struct", "fdt"), ("fdtable", "fd"))
            ]
            at = task.address
            for step in follow:
                (at,) = step(at)
            paths = PathReader(linux)
            (fs,) = linux.unpacker("task_struct", (field("fs"),))(task.address)
            seen = [
                paths.text(paths.file(linux.memory.u64(at + 8 * (HELD + number))), paths.root(fs))
                for number in range(len(said))
            ]
        assert seen == said
        assert [text.split("[")[0].split("#")[0] for text in said[:5]] == [
            "pipe:",
            "socket:",
            "anon_inode:",
            "/memfd:ghost (deleted)",
            "/tmp/",
        ]
    finally:
        job.kill()
