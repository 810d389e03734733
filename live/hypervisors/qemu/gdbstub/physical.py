"""Guest-physical memory in packets of QEMU's gdb stub: addresses in, bytes out.

``m ADDRESS,LENGTH`` is answered with two hexadecimal digits a byte; it takes guest-physical addresses while
``Qqemu.PhyMemMode`` is 1 (gdbstub.c, handle_set_qemu_phy_mem_mode).  That mode is QEMU's, not that of the
connection, and a debugger that comes later does not expect it: it is set and reset with every exchange.

A byte that arrives while the guest runs stops it; so nothing is ever sent unless it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from live.core.errors import MemoryFault, TargetError
from live.hypervisors.qemu.gdbstub.wire import Wire

LINE = 2048
"""Bytes that one packet reads: half of the PacketSize that QEMU 7.2 and 10.0 announce."""
TIMEOUT = 2.0
"""Seconds for an answer; the guest stands meanwhile."""
_IN_FLIGHT = 64
"""Requests that are not answered yet, at most: their 2 KiB fit into QEMU's buffer for what it receives."""
_PACKET_SIZE = re.compile(rb"PacketSize=([0-9a-fA-F]{1,8})(?:;|$)")
_PHYSICAL, _VIRTUAL = b"Qqemu.PhyMemMode:1", b"Qqemu.PhyMemMode:0"


class PhysicalClient:
    """A connection to the stub that changes nothing.  The guest stands during each call."""

    def __init__(self, wire: Wire) -> None:
        """Greet the stub.  ``wire`` stays the caller's.  Raises `TargetError`, `GuestGone`."""
        self._wire = wire
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
                self._wire.send(*batch)
            answers.append(self._answer())
        return answers

    def _answer(self) -> bytes:
        while True:
            try:
                packet = self._wire.receive(TIMEOUT)
            except TimeoutError:
                raise TargetError(
                    f"QEMU's gdb stub has not answered for {TIMEOUT:.0f} s: QEMU hangs, or somebody "
                    "resumed the guest; try again."
                ) from None
            if packet[:1] != b"T":  # QEMU 7.2 reports each stop, asked or not
                self._owed -= 1
                return packet
