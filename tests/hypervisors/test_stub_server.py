"""Starting the gdb stub: what QEMU's monitor says is not trusted with files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from live.hypervisors.qemu.gdbstub.server import StubServer


class FakeGuest:
    """Has a gdb stub that listens where it says."""

    def __init__(self, listening: str) -> None:
        self.info = SimpleNamespace(name="vm", uid=-1)
        self.monitor = self
        self.listening = listening
        self.asked: list[str] = []

    def hmp(self, line: str) -> str:
        self.asked.append(line)
        if line == "info chardev":
            return f"gdb: filename=disconnected:unix:{self.listening},server=on\n" if self.listening else ""
        if line.startswith("gdbserver unix:"):
            Path(line.split(":", 1)[1].split(",", maxsplit=1)[0]).touch()
        return ""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["pse-gdb-1", "precious/pse-gdb-1", "pse-gdb-1/other"])
def test_a_stub_of_somebody_else_is_used_and_nothing_is_removed(temporary, name):
    (temporary / "precious").mkdir()
    (temporary / "precious" / "file").write_text("x")
    guest = FakeGuest(str(temporary / name))
    server = StubServer(guest)
    assert server.path == str(temporary / name)
    server.close()
    assert (temporary / "precious" / "file").exists()
    assert guest.asked == ["info chardev"]


def test_what_a_killed_watcher_left_is_removed_and_no_more(temporary):
    left = temporary / "pse-gdb-abc"
    left.mkdir()
    (left / "stub").touch()
    (left / "mine").touch()
    guest = FakeGuest(str(left / "stub"))
    server = StubServer(guest)
    assert sorted(path.name for path in left.iterdir()) == ["mine"]
    assert Path(server.path).exists()
    server.close()
    assert not Path(server.path).parent.exists()
    assert guest.asked[-1] == "gdbserver none"
