"""The monitor, against servers that speak as QEMU does."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live.core.errors import GuestGone, NoTarget, TargetError
from live.hypervisors.qemu.guest import parse_registers
from live.hypervisors.qemu.monitor.client import HmpMonitor, QmpMonitor, connect

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve one connection with a function; gives the address."""
    listener = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "monitor.sock")
    threads = []

    def start(handler: Callable[[socket.socket], None]) -> str:
        listener.bind(path)
        listener.listen(1)

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                handler(connection)

        threads.append(threading.Thread(target=run, daemon=True))
        threads[0].start()
        return path

    yield start
    listener.close()
    for thread in threads:
        thread.join(5)


def qmp(connection: socket.socket) -> None:
    """Greet, negotiate, answer; send an event before each answer."""
    file = connection.makefile("w")

    def send(message: object) -> None:
        file.write(json.dumps(message) + "\r\n")
        file.flush()

    version = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}
    send({"QMP": {"version": version, "capabilities": []}})
    decoder, text = json.JSONDecoder(), ""
    while data := connection.recv(4096):
        text += data.decode()
        message, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        identity = {"id": message["id"]} if "id" in message else {}
        stamp = {"seconds": 1, "microseconds": 0}
        if message["execute"] == "human-monitor-command":
            send({"event": "RESET", "data": {"guest": True}, "timestamp": stamp})
            command = message["arguments"]["command-line"]
            send({"return": f"did {command}\r\n", **identity})
            if command == "quit":
                return
        elif message["execute"] == "query-status":
            send({"return": {"status": "paused", "running": False}, **identity})
        elif message["execute"] == "qmp_capabilities":
            send({"return": {}, **identity})
        else:
            send({"error": {"class": "CommandNotFound", "desc": "no such command"}, **identity})


def hmp(connection: socket.socket) -> None:
    """Greet and answer; the echo redraws the line for each character, as readline does."""
    connection.sendall(b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ")
    for line in connection.makefile("rb"):
        command = line.decode().strip()
        echo = "".join(command[: n + 1] + "\x1b[K\x1b[D" for n in range(len(command))) + "\r\n"
        answer = (
            "VM status: paused (prelaunch)\r\n" if command == "info status" else f"did {command}\r\nok\r\n"
        )
        data = f"{echo}{answer}(qemu) ".encode()
        for at in range(0, len(data), 7):
            connection.sendall(data[at : at + 7])


def test_qmp(serve: Serve) -> None:
    before = threading.active_count()
    monitor = connect(serve(qmp))
    assert isinstance(monitor, QmpMonitor)
    assert (monitor.protocol, monitor.version) == ("qmp", "10.0.2")
    assert monitor.hmp("info mtree -f") == "did info mtree -f\n"
    assert monitor.status() == "paused"
    assert monitor.events() == ["RESET"]
    assert monitor.events() == []
    with pytest.raises(TargetError, match=r"QEMU refused nonsense: no such command; check its version"):
        monitor.execute("nonsense")
    monitor.close()
    monitor.close()
    assert threading.active_count() <= before + 1  # the server's


def test_qmp_that_goes_away(serve: Serve) -> None:
    monitor = connect(serve(qmp))
    monitor.hmp("quit")
    with pytest.raises(GuestGone, match="has probably ended, start it again"):
        monitor.hmp("info status")
    monitor.close()


def test_hmp(serve: Serve) -> None:
    monitor = connect(serve(hmp))
    assert isinstance(monitor, HmpMonitor)
    assert (monitor.protocol, monitor.version) == ("hmp", "7.2.22")
    assert monitor.hmp("info memdev") == "did info memdev\nok\n"
    assert monitor.status() == "prelaunch"
    assert monitor.events() == []
    monitor.close()


def test_in_use_by_somebody_else(serve: Serve) -> None:
    release = threading.Event()
    address = serve(lambda _: release.wait(5) and None)
    started = time.monotonic()
    with pytest.raises(TargetError, match="another program uses it"):
        connect(address, timeout=0.2)
    assert time.monotonic() - started < 2
    release.set()


def test_what_is_no_monitor(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(NoTarget, match="No QEMU listens at"):
        connect(str(tmp_path / "nothing"))
    with pytest.raises(NoTarget, match="is no QEMU monitor; give the guest's monitor socket"):
        connect(serve(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n")))


def test_a_monitor_that_closes_at_once(serve: Serve) -> None:
    with pytest.raises(GuestGone):
        connect(serve(lambda _: None))


def test_failed_connections_leave_nothing(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(NoTarget):
            connect(str(tmp_path / "nothing"))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_registers_of_info_registers() -> None:
    text = (
        "CPU#0\nRAX=000000000001ad40 RBX=0000000000000000\nR8 =0000000000022e80 R9 =7\n"
        "RIP=ffffffff9a817a0b RFL=00000246 [---Z-P-] CPL=0 II=0\n"
        "GS =0000 ffff8ca3ddc00000 00000000 00000000\n"
        "TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64\n"
        "GDT=     fffffe0000001000 0000007f\nIDT=     fffffe0000000000 00000fff\n"
        "CR0=80050033 CR2=ffff8ca3dd001000 CR3=000000001c210000 CR4=000006b0\nEFER=0000000000000d01\n"
    )
    wanted = {
        "rax": 0x1AD40, "rbx": 0, "r8": 0x22E80, "r9": 7, "rip": 0xFFFFFFFF9A817A0B,
        "gs_base": 0xFFFF8CA3DDC00000, "tr_base": 0xFFFFFE0000003000,
        "gdt_base": 0xFFFFFE0000001000, "idt_base": 0xFFFFFE0000000000,
        "cr0": 0x80050033, "cr2": 0xFFFF8CA3DD001000, "cr3": 0x1C210000, "cr4": 0x6B0, "efer": 0xD01,
    }  # fmt: skip
    assert wanted.items() <= parse_registers(text).items()
