"""Starting the gdb stub: what QEMU's monitor says is not trusted with files."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from live.core.errors import NotPermitted, TargetError
from live.hypervisors.qemu.gdbstub import server
from live.hypervisors.qemu.gdbstub.server import StubConnection


class FakeGuest:
    """Is its own monitor; its stub is what ``chardev`` says, and calls whom it is told to if it ``calls``."""

    name = "vm"

    def __init__(
        self, chardev: str = "", *, uid: int = -1, calls: bool = True, caller: int | None = None
    ) -> None:
        self.chardev, self.uid, self.calls = chardev, uid, calls
        self.caller = os.geteuid() if caller is None else caller
        self.asked: list[str] = []
        self.end: socket.socket | None = None

    def hmp(self, line: str) -> str:
        self.asked.append(line)
        if line == "info chardev":
            return f"compat_monitor0: filename=mux\n{self.chardev}\n"
        if line.startswith("gdbserver unix:") and self.calls:
            self.end = socket.socket(socket.AF_UNIX)
            us = os.geteuid()
            os.seteuid(self.caller)  # SO_PEERCRED has who connected
            try:
                self.end.connect(line.partition(":")[2])
            finally:
                os.seteuid(us)
        return "" if self.calls else "it is confined"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def idle(path: object) -> str:
    return f"gdb: filename=disconnected:unix:{path},server=on"


def test_qemu_calls_us_and_nothing_is_left(temporary):
    guest = FakeGuest()
    stub = StubConnection(guest, guest)
    assert guest.end is not None
    guest.end.sendall(b"$OK#9a")
    assert stub.wire.receive(5) == b"OK"
    assert list(temporary.iterdir()) == []
    stub.close()
    stub.close()
    assert guest.end.recv(1) == b""
    assert guest.asked[-1] == "gdbserver none"
    assert guest.asked.count("gdbserver none") == 1


@pytest.mark.parametrize("name", ["pse-gdb-1", "precious/pse-gdb-1", "pse-gdb-1/other"])
def test_a_stub_of_somebody_else_is_used_and_nothing_is_removed(temporary, name):
    (temporary / "precious").mkdir()
    (temporary / "precious" / "file").write_text("x")
    (temporary / name).parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(temporary / name))
        listener.listen(1)
        guest = FakeGuest(idle(temporary / name))
        stub = StubConnection(guest, guest)
        assert stub.wire.address == str(temporary / name)
        stub.close()
    assert (temporary / "precious" / "file").exists()
    assert (temporary / name).exists()
    assert guest.asked == ["info chardev"]


@pytest.mark.parametrize("option", [",server=on", ""])
def test_what_a_killed_watcher_left_is_removed_and_no_more(temporary, option):
    left = temporary / "pse-gdb-abc"
    left.mkdir()
    (left / "stub").touch()
    (left / "mine").touch()
    guest = FakeGuest(f"gdb: filename=disconnected:unix:{left / 'stub'}{option}")
    stub = StubConnection(guest, guest)
    assert sorted(path.name for path in left.iterdir()) == ["mine"]
    assert guest.asked[1] == "gdbserver none"
    stub.close()
    assert sorted(temporary.iterdir()) == [left]


def test_a_stub_that_had_called_somebody_is_replaced(temporary):
    (temporary / "theirs").touch()
    guest = FakeGuest(f"gdb: filename=disconnected:unix:{temporary / 'theirs'}")
    StubConnection(guest, guest).close()
    assert guest.asked[1] == "gdbserver none"
    assert (temporary / "theirs").exists()


@pytest.mark.usefixtures("temporary")
def test_a_stub_in_use_is_left_alone():
    guest = FakeGuest("gdb: filename=unix:/tmp/gdb,server=on")
    with pytest.raises(TargetError, match="The gdb stub of vm is in use"):
        StubConnection(guest, guest)
    assert guest.asked == ["info chardev"]


def test_qemu_that_does_not_call_is_refused(temporary, monkeypatch):
    monkeypatch.setattr(server, "_CALL_S", 0.01)
    guest = FakeGuest(calls=False)
    with pytest.raises(TargetError, match=r"it is confined.*set TMPDIR"):
        StubConnection(guest, guest)
    assert list(temporary.iterdir()) == []
    assert guest.asked[-1] == "gdbserver none"


def test_somebody_else_who_calls_is_sent_away(monkeypatch):
    qemu, caller = 12345, os.geteuid() or 65534
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o711)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        guest = FakeGuest(uid=qemu, caller=caller)
        with pytest.raises(NotPermitted, match=f"uid {caller}.*took the place"):
            StubConnection(guest, guest)
        assert os.listdir(directory) == []
        assert guest.asked[-1] == "gdbserver none"
