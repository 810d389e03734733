"""Guest-physical memory in packets of QEMU's gdb stub: addresses in, bytes out, over a connected socket.

``m ADDRESS,LENGTH`` is answered with two hexadecimal digits a byte, ``M ADDRESS,LENGTH:DIGITS`` with OK; both
take guest-physical addresses while ``Qqemu.PhyMemMode`` is 1 (gdbstub.c, handle_set_qemu_phy_mem_mode).  That
mode is QEMU's, not that of the connection, and a debugger that comes later does not expect it: it is set and
reset with every exchange.

A byte that arrives while the guest runs stops it; so nothing is ever sent unless it stands.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Iterable, Sequence

from live.core.errors import GuestGone, MemoryFault, TargetError
from live.hypervisors.qemu.gdbstub.packets import Decoder, Packet, encode

LINE = 2048
"""Bytes that one packet reads: half of the PacketSize that QEMU 7.2 and 10.0 announce."""
TIMEOUT = 2.0
"""Seconds for an answer; the guest stands meanwhile."""
_IN_FLIGHT = 64
"""Requests that are not answered yet, at most: their 2 KiB fit into QEMU's buffer for what it receives."""
_PACKET_SIZE = re.compile(rb"PacketSize=([0-9a-fA-F]{1,8})(?:;|$)")
_BYTE = re.compile(rb"[0-9a-fA-F]{2}")
_PHYSICAL, _VIRTUAL = b"Qqemu.PhyMemMode:1", b"Qqemu.PhyMemMode:0"


class PhysicalClient:
    """A connection to the stub that changes no memory.  The guest stands during each call."""

    def __init__(self, connection: socket.socket) -> None:
        """Greet the stub.  ``connection`` stays the caller's.  Raises `TargetError`, `GuestGone`."""
        self._socket = connection
        self._socket.settimeout(TIMEOUT)
        self._decoder = Decoder()
        self._packets: deque[bytes] = deque()
        self._owed = 0
        """Answers to requests of a call that was broken off (Ctrl-C)."""
        (answer,) = self._exchange([b"qSupported"])
        found = _PACKET_SIZE.search(answer)
        limit = int(found[1], 16) // 2 if found else 0
        if limit < LINE or self._exchange([_PHYSICAL, _VIRTUAL]) != [b"OK", b"OK"]:
            raise TargetError(
                "The gdb stub does not read guest-physical memory; QEMU's does, from version 4.1 on."
            )

    def read(self, lines: Sequence[int]) -> list[bytes]:
        """The `LINE` bytes from each gpa.

        Raises `MemoryFault` with the first that cannot be read, `TargetError`, `GuestGone`.
        """
        requests = [b"m%x,%x" % (gpa, LINE) for gpa in lines]
        data = []
        for gpa, answer in zip(lines, self._exchange([_PHYSICAL, *requests, _VIRTUAL])[1:-1], strict=True):
            # An error is "E" and two digits.
            if len(answer) != 2 * LINE:
                raise MemoryFault(gpa, "QEMU's gdb stub cannot read there")
            data.append(bytes.fromhex(answer.decode("ascii", "replace")))
        return data

    def rewrite(self, gpas: Iterable[int]) -> None:
        """Write over the byte at each gpa what it is.

        Raises `MemoryFault` with the first that cannot be read or written, `TargetError`, `GuestGone`.
        """
        wanted = list(gpas)
        found = self._exchange([_PHYSICAL, *(b"m%x,1" % gpa for gpa in wanted), _VIRTUAL])[1:-1]
        for gpa, byte in zip(wanted, found, strict=True):
            if not _BYTE.fullmatch(byte):
                raise MemoryFault(gpa, "QEMU's gdb stub cannot read there")
        writes = [b"M%x,1:%b" % pair for pair in zip(wanted, found, strict=True)]
        for gpa, answer in zip(wanted, self._exchange([_PHYSICAL, *writes, _VIRTUAL])[1:-1], strict=True):
            if answer != b"OK":
                raise MemoryFault(gpa, "QEMU's gdb stub cannot write there")

    def _exchange(self, payloads: Sequence[bytes]) -> list[bytes]:
        while self._owed:
            self._answer()
        answers: list[bytes] = []
        sent = 0
        while len(answers) < len(payloads):
            if sent < len(payloads) and self._owed <= _IN_FLIGHT // 2:
                batch = payloads[sent : sent + _IN_FLIGHT - self._owed]
                sent += len(batch)
                self._owed += len(batch)
                try:
                    self._socket.sendall(b"".join(map(encode, batch)))
                except OSError:
                    raise self._gone() from None
            answers.append(self._answer())
        return answers

    def _answer(self) -> bytes:
        while True:
            while not self._packets:
                try:
                    data = self._socket.recv(1 << 18)
                except TimeoutError:
                    raise TargetError(
                        f"QEMU's gdb stub has not answered for {TIMEOUT:.0f} s: QEMU hangs, or somebody "
                        "resumed the guest; try again."
                    ) from None
                except OSError:
                    data = b""
                if not data:
                    raise self._gone()
                self._packets.extend(
                    item.payload for item in self._decoder.feed(data) if isinstance(item, Packet)
                )
            packet = self._packets.popleft()
            if packet[:1] != b"T":  # QEMU 7.2 reports each stop, asked or not
                self._owed -= 1
                return packet

    @staticmethod
    def _gone() -> GuestGone:
        return GuestGone("The guest has ended, or its gdb stub was taken over by another; attach again.")
