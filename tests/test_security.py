"""What a process may do, and on whose behalf, against its own /proc, on real guests."""

from __future__ import annotations

import re

import pytest

from live.core.events import Security
from live.linux.system import LinuxSystem
from live.watch.session import Session
from tests.guest.fixtures import Boot
from tests.guest.guest import Guest

pytestmark = pytest.mark.guest
UNSET = 0xFFFF_FFFF


def started(guest: Guest, what: str) -> tuple[int, dict[str, list[str]]]:
    """The pid of a program that has set these, and what it says of itself."""
    guest.run(f"rm -f /tmp/said; (/programs/security '{what}' > /tmp/said &)")
    text = guest.run("while ! grep -q ^end /tmp/said; do sleep 0.1; done; cat /tmp/said").output
    said = {words[0].rstrip(":"): words[1:] for line in text.splitlines() if (words := line.split())}
    said["stat"] = re.search(r"^value (\d+ \(.*)$", text, re.MULTILINE)[1].rpartition(")")[2].split()  # type: ignore[index]
    said["loginuid"] = re.findall(r"loginuid\s+value (\d+)", text)
    said["sessionid"] = re.findall(r"sessionid\s+value (\d+)", text)
    return int(said["pid"][0]), said


def seen(guest: Guest, pid: int) -> Security:
    with Session(str(guest.monitor)) as session:
        assert isinstance(session.os, LinuxSystem)
        (task,) = [task for task in session.os.snapshot(0, "").tasks if task.identity.pid == pid]
        security = session.os.describe(task).security
        assert security is not None
        return security


def number(text: str) -> int | None:
    return None if int(text) == UNSET else int(text)


@pytest.mark.parametrize("kernel", ["5.10", pytest.param("6.1", marks=pytest.mark.deep), "6.12", "7.2"])
def test_a_process_is_seen_as_it_sees_itself(boot: Boot, kernel: str) -> None:
    guest = boot(kernel=kernel)
    found = []
    for what in ("", "n", "s", "u", "l", "c", "nsulc"):
        pid, said = started(guest, what)
        security = seen(guest, pid)
        found.append(security)
        assert security.capabilities is not None
        names = ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")
        assert list(security.capabilities) == [int(said[name][0], 16) for name in names], what
        assert security.no_new_privs is bool(int(said["NoNewPrivs"][0]))
        assert security.seccomp == int(said["Seccomp"][0])
        ids = [security.ns_uid, security.ns_gid, security.ns_euid, security.ns_egid]
        assert ids == list(map(int, said["ids"])), what
        if said["loginuid"] and "u" not in what:  # its own /proc shows it by its namespace
            assert security.login_uid == number(said["loginuid"][0])
            assert security.session_id == number(said["sessionid"][0])
        device = int(said["stat"][4])
        major, minor = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
        assert security.tty == ((major, minor) if device else None)
        guest.run(f"kill -9 {pid}")
    # The program has set something each time: else the comparison says nothing.
    assert len(set(found)) >= 6
