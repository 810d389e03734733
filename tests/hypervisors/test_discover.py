"""Finding QEMU processes, in a /proc made of files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from live.core.errors import NoTarget
from live.hypervisors.qemu.discover import list_guests, parse_options, parse_size, read_guest, resolve


class FakeProc:
    """A /proc directory with processes in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "self").mkdir()
        (root / "meminfo").write_text("")

    def add(
        self, pid: int, command: str, cwd: str = "/run/vm", fds: dict[int, str] | None = None, unix: str = ""
    ) -> None:
        directory = self.root / str(pid)
        (directory / "fd").mkdir(parents=True)
        (directory / "net").mkdir()
        (directory / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command.split(" ")))
        (directory / "cwd").symlink_to(cwd)
        (directory / "net" / "unix").write_text("Num RefCount Protocol Flags Type St Inode Path\n" + unix)
        for number, target in (fds or {}).items():
            (directory / "fd" / str(number)).symlink_to(target)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    root = tmp_path / "proc"
    root.mkdir()
    return FakeProc(root)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 << 20),
        ("4G", 4 << 30),
        ("1.5g", 3 << 29),
        ("65536k", 64 << 20),
        ("1T", 1 << 40),
        ("x", 0),
        ("", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_options_with_escaped_commas_and_flags() -> None:
    assert parse_options("guest=a,,b,debug-threads=on") == {"guest": "a,b", "debug-threads": "on"}
    assert parse_options("socket,id=m,path=/x,server,nowait") == {
        "": "socket", "id": "m", "path": "/x", "server": "on", "nowait": "off",
    }  # fmt: skip


def test_every_field_of_a_plain_guest(proc: FakeProc) -> None:
    proc.add(
        41,
        "/usr/bin/qemu-system-x86_64 -name web -m 2G -smp 4,sockets=2 -machine q35,accel=kvm:tcg "
        "-qmp unix:qmp.sock,server=on,wait=off -monitor unix:/m/hmp,server,nowait -display none",
    )
    (guest,) = list_guests(proc.root)
    assert (guest.pid, guest.name, guest.memory, guest.vcpus, guest.accel) == (41, "web", 2 << 30, 4, "kvm")
    assert guest.monitors == ("/run/vm/qmp.sock", "/m/hmp")
    assert (guest.binary, guest.uid, guest.plugin_socket) == ("qemu-system-x86_64", os.getuid(), None)


def test_defaults(proc: FakeProc) -> None:
    proc.add(7, "qemu-system-x86_64")
    (guest,) = list_guests(proc.root)
    assert (guest.name, guest.memory, guest.accel, guest.monitors, guest.vcpus) == (
        "qemu-7",
        128 << 20,
        "tcg",
        (),
        1,
    )


def test_monitors_by_chardev_qmp_first(proc: FakeProc) -> None:
    proc.add(
        7,
        "qemu-system-x86_64 -chardev socket,id=h,path=/h,server=on -mon chardev=h,mode=readline "
        "-mon chardev=q,mode=control -chardev socket,id=q,path=/q,server=on -qmp tcp:localhost:4444,server "
        "-qmp stdio",
    )
    assert list_guests(proc.root)[0].monitors == ("localhost:4444", "/q", "/h")


def test_libvirt_hands_the_monitor_over_as_a_descriptor(proc: FakeProc) -> None:
    proc.add(
        9,
        "/usr/bin/qemu-system-x86_64 -name guest=db,debug-threads=on -accel kvm -m size=1048576k "
        "-chardev socket,id=charmonitor,fd=27,server=on,wait=off "
        "-mon chardev=charmonitor,id=monitor,mode=control",
        fds={27: "socket:[4711]"},
        unix="0000: 00000002 00000000 00010000 0001 01 4711 /var/lib/libvirt/qemu/domain-1-db/monitor.sock\n",
    )
    (guest,) = list_guests(proc.root)
    assert (guest.name, guest.accel, guest.memory) == ("db", "kvm", 1 << 30)
    assert guest.monitors == ("/var/lib/libvirt/qemu/domain-1-db/monitor.sock",)


def test_our_plugin_is_told_from_others(proc: FakeProc) -> None:
    proc.add(
        3,
        "qemu-system-x86_64 -plugin /x/libhotblocks.so,socket=/no "
        "-plugin file=/c/pse-trap-12.so,socket=t.sock",
    )
    assert list_guests(proc.root)[0].plugin_socket == "/run/vm/t.sock"


def test_other_processes_are_no_guests(proc: FakeProc) -> None:
    proc.add(1, "/sbin/init")
    proc.add(2, "/usr/bin/qemu-img info x")
    proc.add(3, "")
    proc.add(4, "vi qemu-system-x86_64")
    assert list_guests(proc.root) == []
    assert read_guest(99, proc.root) is None


def test_resolve_by_name_pid_and_alone(proc: FakeProc) -> None:
    proc.add(5, "qemu-system-x86_64 -name a")
    assert resolve(None, proc.root).pid == 5
    proc.add(6, "qemu-kvm -name b")
    assert resolve("b", proc.root).pid == 6
    assert resolve("5", proc.root).name == "a"
    with pytest.raises(
        NoTarget, match=r"^Several guests are running: a \(pid 5\), b \(pid 6\); name one of them\.$"
    ):
        resolve(None, proc.root)
    with pytest.raises(
        NoTarget, match=r"^No guest is called 'c'; running: a \(pid 5\), b \(pid 6\); give a name"
    ):
        resolve("c", proc.root)


def test_resolve_says_what_is_wrong(proc: FakeProc, tmp_path: Path) -> None:
    with pytest.raises(NoTarget, match=r"^No QEMU guest is running on this machine; start one"):
        resolve(None, proc.root)
    with pytest.raises(NoTarget, match=r"^There is no monitor socket at .*/gone; `pse vms`"):
        resolve(str(tmp_path / "gone"), proc.root)
    (tmp_path / "file").write_text("")
    with pytest.raises(NoTarget, match="is not a socket; give the guest's monitor socket"):
        resolve(str(tmp_path / "file"), proc.root)
    proc.add(8, "qemu-system-x86_64 -name twin")
    proc.add(9, "qemu-system-x86_64 -name twin")
    with pytest.raises(NoTarget, match=r"^Several guests are called twin: .*; give the pid of one\.$"):
        resolve("twin", proc.root)


def test_resolve_by_socket_puts_it_first(proc: FakeProc) -> None:
    proc.add(5, "qemu-system-x86_64 -qmp unix:/a/one,server -qmp unix:/a/two,server")
    assert resolve("/a/two", proc.root).monitors == ("/a/two", "/a/one")
    assert resolve("unix:/a/two", proc.root).monitors == ("/a/two", "/a/one")


def test_a_socket_that_only_its_listener_knows(proc: FakeProc, tmp_path: Path) -> None:
    proc.add(os.getpid(), "qemu-system-x86_64 -name me")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        guest = resolve(str(tmp_path / "s"), proc.root)
    assert (guest.name, guest.monitors) == ("me", (str(tmp_path / "s"),))


def test_numbers_that_only_look_like_some_are_no_traceback(proc: FakeProc) -> None:
    """Any user may start something that is called qemu-system-x86_64."""
    proc.add(7, "qemu-system-x86_64 -smp ² -m " + "9" * 400)
    (guest,) = list_guests(proc.root)
    assert guest.vcpus == 1
