"""The guardian without a guest: its watcher has died, and QEMU is slow to hear it, or ends meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from live.hypervisors.qemu.monitor import watchdog_process as guardian

KINDS = {
    "gdb": (b"$D#44", b"$OK#9a"),
    "qmp": (b'"cont"', b'{"return": {}, "id": "pse-guardian"}\r\n'),
    "hmp": (b"cont\n", b"cont\r\nprint /d 0x70736521\r\n1886610721\r\n(qemu) "),
}
"""What it says, and what QEMU answers."""


@contextlib.contextmanager
def orphaned(kind: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A guardian whose watcher was killed in a stop, and QEMU's end of the socket."""
    page = os.memfd_create("page")
    os.pwrite(page, guardian.FOREVER.to_bytes(8, "little"), guardian.DEADLINE_AT)
    os.pwrite(page, bytes(16), guardian.TAKEN_AT)
    pipe, watcher = os.pipe()
    shared, qemu = socket.socketpair()
    numbers = (shared.fileno(), pipe, page)
    command = [sys.executable, "-I", "-S", guardian.__file__, kind, *map(str, numbers)]
    with qemu, subprocess.Popen(command, pass_fds=numbers) as process:
        shared.close()
        for number in (page, pipe, watcher):
            os.close(number)
        try:
            yield process, qemu
        finally:
            process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_it_does_not_hang_up_before_qemu_has_heard_it(kind: str) -> None:
    word, answer = KINDS[kind]
    with orphaned(kind) as (process, qemu):
        time.sleep(2)  # as on a host where QEMU gets no CPU
        assert process.poll() is None, "QEMU would drop what it has not read"
        qemu.settimeout(30)
        heard = b""
        while word not in heard:
            heard += qemu.recv(4096)
        with contextlib.suppress(BrokenPipeError):  # it does not wait for the end of a line
            for byte in answer:
                qemu.sendall(bytes([byte]))
        assert process.wait(30) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_qemu(kind: str) -> None:
    with orphaned(kind) as (process, qemu):
        heard = b""
        while KINDS[kind][0] not in heard:
            heard += qemu.recv(4096)
        qemu.close()
        assert process.wait(30) == 0


def test_what_is_unread_is_found_without_waiting_for_more() -> None:
    """The watcher's socket has a timeout, for which recv() waits; the hold limit is kept by who asks this."""
    ours, stub = socket.socketpair()
    with ours, stub:
        ours.settimeout(60)
        began = time.monotonic()
        assert not guardian.said(ours)
        stub.send(b"+")
        assert not guardian.said(ours)
        stub.send(b"$T05thread:01;#07")
        assert guardian.said(ours)
        assert time.monotonic() - began < 30
        assert ours.recv(64) == b"+$T05thread:01;#07", "nothing is taken, and the socket is still there"
