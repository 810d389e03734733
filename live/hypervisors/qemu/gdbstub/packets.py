"""The gdb remote serial protocol's framing, sans-io: bytes in, packets out.

Theory of operation
-------------------
``$payload#checksum`` with two hexadecimal digits, the sum of the payload's bytes modulo 256 ("Overview",
appendix "Remote Protocol" of the gdb manual).  ``}`` escapes the byte after it (xor 0x20), ``*`` repeats the
byte before it (count + 29).  ``+`` and ``-`` are acknowledgements, ``%`` starts a notification, which has no
acknowledgement.

A `Decoder` is fed whatever the socket gave, in pieces of any size, and returns what became complete.  Garbage
between packets is skipped and counted; a packet with a wrong checksum is reported as `Corrupt`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_PACKET = 1 << 20
"""Bytes; a longer one is no packet of ours, and is dropped as corrupt."""


class Signal(enum.Enum):
    """What is no packet."""

    ACK = "+"
    NAK = "-"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet's payload, unescaped and expanded."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification's payload (``%``)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Corrupt:
    """A packet whose checksum is wrong, or that cannot be expanded; as it came."""

    raw: bytes


Item = Packet | Notification | Corrupt | Signal

_SPECIAL = frozenset(b"$#}*")


def checksum(raw: bytes) -> int:
    """Sum of the bytes as sent, modulo 256."""
    return sum(raw) & 0xFF


def encode(payload: bytes) -> bytes:
    """The payload as a packet, ready to send."""
    raw = bytearray()
    for byte in payload:
        if byte in _SPECIAL:
            raw += bytes((0x7D, byte ^ 0x20))
        else:
            raw.append(byte)
    return b"$%b#%02x" % (bytes(raw), checksum(bytes(raw)))


def expand(raw: bytes) -> bytes | None:
    """Undo escapes and repetitions; None if that cannot be done."""
    if b"}" not in raw and b"*" not in raw:
        return raw
    out = bytearray()
    index = 0
    while index < len(raw):
        byte = raw[index]
        index += 1
        if byte in (0x7D, 0x2A):
            if index == len(raw):
                return None
            argument = raw[index]
            index += 1
            if byte == 0x7D:
                out.append(argument ^ 0x20)
            elif not out or argument < 29:
                return None
            else:
                out += out[-1:] * (argument - 29)
        else:
            out.append(byte)
    return bytes(out)


class Decoder:
    """Bytes in, `Item` objects out."""

    def __init__(self) -> None:
        """Between packets."""
        self._pending = bytearray()
        self.garbage = 0
        """Bytes that belonged to nothing."""

    def feed(self, data: bytes) -> list[Item]:
        """What ``data`` completed, in order."""
        self._pending += data
        items: list[Item] = []
        while self._pending:
            first = self._pending[0]
            if first in b"+-":
                items.append(Signal(chr(first)))
                del self._pending[0]
            elif first in b"$%":
                item = self._packet(first)
                if item is None:
                    break
                items.append(item)
            else:
                self.garbage += 1
                del self._pending[0]
        return items

    def _packet(self, first: int) -> Item | None:
        """The packet at the front, or None while it is incomplete."""
        end = self._pending.find(b"#")
        if end < 0 or len(self._pending) < end + 3:
            if len(self._pending) <= MAX_PACKET:
                return None
            end = len(self._pending) - 3
        raw = bytes(self._pending[1:end])
        digits = bytes(self._pending[end + 1 : end + 3])
        del self._pending[: end + 3]
        payload = expand(raw)
        try:
            good = int(digits, 16) == checksum(raw)
        except ValueError:
            good = False
        if payload is None or not good:
            return Corrupt(raw)
        return Packet(payload) if first == ord("$") else Notification(payload)
