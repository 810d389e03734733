"""A gdb stub as QEMU's behaves, in a thread: what its vCPUs do when they run is scripted."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from live.hypervisors.qemu.gdbstub.packets import Decoder, Item, Packet, encode

REGISTERS = ("rdi", "rip", "cr3")
_XML = "<target>" + "".join(f'<reg name="{name}" bitsize="64"/>' for name in REGISTERS) + "</target>"
CORE = {"i386-64bit.xml": _XML}
COMPOSED = {"target.xml": '<target><xi:include href="i386-32bit.xml"/></target>', "i386-32bit.xml": _XML}
"""The description files of a stub that does not have the one that QEMU's 64-bit stub has."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What happens when the guest is let run: where vCPUs stand then, who has hit, who is reported.

    ``hit``: thread -> word; QEMU marks each, reports ``reported``, and takes the mark of that one away.
    ``reported`` 0: nobody, the guest runs on until it is interrupted.
    """

    at: Mapping[int, int] = field(default_factory=dict)
    hit: Mapping[int, int] = field(default_factory=dict)
    reported: int = 0


class Stub:
    """Listens at ``path`` until its client hangs up; ``log`` has what was asked, in order."""

    def __init__(
        self, path: Path, vcpus: int, script: Iterable[Run] = (), features: Mapping[str, str] = CORE
    ) -> None:
        self.path, self.vcpus, self.features = path, vcpus, features
        self.script = deque(script)
        self.pc = dict.fromkeys(range(1, vcpus + 1), 0x100)
        self.marks: dict[int, int] = {}
        self.log: list[str] = []
        self.flushes = 0
        self.running = False
        self._selected = 1
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def guest(self) -> SimpleNamespace:
        """What `GdbSource` needs of the guest (gdbstub/needs.py)."""
        listed = f"gdb: filename=disconnected:unix:{self.path},server=on\n"
        return SimpleNamespace(
            name="vm",
            uid=-1,
            accelerator="tcg",
            monitor=SimpleNamespace(hmp=lambda line: listed if line == "info chardev" else ""),
            vcpus=tuple(range(self.vcpus)),
            status=lambda: "running",
        )

    def join(self) -> None:
        self._thread.join(5)
        self._listener.close()

    def _serve(self) -> None:
        self._connection, _ = self._listener.accept()
        decoder = Decoder()
        with self._connection:
            while data := self._connection.recv(4096):
                first, *interrupted = data.split(b"\x03")
                if self._take(decoder.feed(first)):
                    return
                for part in interrupted:
                    if self.running:
                        self.running = False
                        self._send("T02thread:01;")
                    if self._take(decoder.feed(part)):
                        return

    def _take(self, items: Iterable[Item]) -> bool:
        return any([self._answer(item.payload.decode()) for item in items if isinstance(item, Packet)])

    def _send(self, text: str) -> None:
        self._connection.sendall(b"+" + encode(text.encode()))

    def _answer(self, request: str) -> bool:
        if not request.startswith(("H", "g", "p", "q", "?")):
            self.log.append(request)
        if request.startswith("qSupported"):
            self._send("PacketSize=1000")
        elif request == "?":
            self._send("T05thread:01;")
        elif request.startswith("qXfer"):
            text = self.features.get(request.split(":")[3])
            self._send("E00" if text is None else "l" + text)
        elif request.startswith("Hg"):
            self._selected = int(request[2:], 16)
            self._send("OK")
        elif request == "g":
            values = {"rip": self.pc[self._selected], "rdi": self._selected, "cr3": 0x1000}
            self._send("".join(self._hex(values[name]) for name in REGISTERS))
        elif request == "p1":
            self._send(self._hex(self.pc[self._selected]))
        elif request == "c":
            self._run()
        elif request.startswith("vCont;s:"):
            thread = int(request.rpartition(":")[2], 16)
            self.pc[thread] += 2
            self._stop(thread)
        else:
            self._send("OK")
        return request == "D"

    @staticmethod
    def _hex(value: int) -> str:
        return value.to_bytes(8, "little").hex()

    def _run(self) -> None:
        self.running = True
        run = self.script.popleft() if self.script else Run()
        self.pc.update(run.at)
        self.marks.update(run.hit)
        if run.reported:
            self.running = False
            self._stop(run.reported)

    def _stop(self, thread: int) -> None:
        word = self.marks.pop(thread, None)
        self.flushes += word is None
        watch = "" if word is None else f"awatch:{word:x};"
        self._send(f"T05thread:{thread:02x};{watch}")
