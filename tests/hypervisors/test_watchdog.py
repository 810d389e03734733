"""The watchdog process without a guest: its watcher has died, QEMU is slow to hear it, or ends meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from live.hypervisors.qemu.monitor import watchdog_process

KINDS = {
    "gdb": (b"$D#44", b"$OK#9a"),
    "qmp": (b'"cont"', b'{"return": {}, "id": "pse-watchdog"}\r\n'),
    "hmp": (b"cont\n", b"cont\r\nprint /d 0x70736521\r\n1886610721\r\n(qemu) "),
}
"""What it says, and what QEMU answers."""


@contextlib.contextmanager
def orphaned(kind: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A watchdog whose watcher was killed in a stop, and QEMU's end of the socket."""
    page = os.memfd_create("page")
    os.pwrite(page, watchdog_process.FOREVER.to_bytes(8, "little"), watchdog_process.DEADLINE_AT)
    os.pwrite(page, bytes(16), watchdog_process.TAKEN_AT)
    pipe, watcher = os.pipe()
    shared, qemu = socket.socketpair()
    numbers = (shared.fileno(), pipe, page)
    command = [sys.executable, "-I", "-S", watchdog_process.__file__, kind, *map(str, numbers)]
    with qemu, subprocess.Popen(command, pass_fds=numbers) as process:
        shared.close()
        for number in (page, pipe, watcher):
            os.close(number)
        try:
            yield process, qemu
        finally:
            process.kill()


@pytest.mark.slow
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
        assert not watchdog_process.said(ours)
        stub.send(b"+")
        assert not watchdog_process.said(ours)
        stub.send(b"$T05thread:01;#07")
        assert watchdog_process.said(ours)
        assert time.monotonic() - began < 30
        assert ours.recv(64) == b"+$T05thread:01;#07", "nothing is taken, and the socket is still there"
