"""What a recording says of itself: whose guest, which kernel, which boot, how it was watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from live.core.memory import PAGE_SIZE, Segment
from live.linux.boot import System
from live.linux.kernel import KernelPlace

_MAX_SEGMENTS = 4096
_MAX_RAM = 1 << 44
"""Bytes: page numbers are stored as 32-bit numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The identity of a recording.

    ``banner``, ``build_id``, ``release``: of the kernel; ``place``: where it lies; ``text``: gpa of
    ``_text``.  ``target``: the guest's name; ``mode``: how it was watched; ``guarantee``: what that mode
    can miss.  ``segments``: guest RAM.  ``created_ns``: UTC.  ``writer``: program and version.
    """

    writer: str
    created_ns: int
    target: str
    mode: str
    guarantee: str
    banner: str
    build_id: str | None
    release: str
    text: int
    place: KernelPlace
    system: System
    segments: Sequence[Segment]

    def encode(self) -> dict[str, Any]:
        """As JSON values."""
        place, system = self.place, self.system
        return {
            "writer": self.writer,
            "created_ns": self.created_ns,
            "target": self.target,
            "mode": self.mode,
            "guarantee": self.guarantee,
            "kernel": {
                "banner": self.banner,
                "build_id": self.build_id,
                "release": self.release,
                "text": self.text,
                "kaslr_shift": place.kaslr_shift,
                "phys_base": place.phys_base,
                "dtb": place.dtb,
                "la57": place.la57,
            },
            "system": {
                "hostname": system.hostname,
                "release": system.release,
                "boot_id": system.boot_id,
                "boot_id_known": system.boot_id_known,
                "boot_ns": system.boot_ns,
            },
            "segments": [[one.start, one.length] for one in self.segments],
        }


def decode(value: Any) -> Header:
    """The inverse of `Header.encode`.  Raises `ValueError`."""
    top = _Fields(value)
    kernel, system = _Fields(top.value("kernel")), _Fields(top.value("system"))
    return Header(
        writer=top.text("writer"),
        created_ns=top.number("created_ns"),
        target=top.text("target"),
        mode=top.text("mode"),
        guarantee=top.text("guarantee"),
        banner=kernel.text("banner"),
        build_id=kernel.text_or_none("build_id"),
        release=kernel.text("release"),
        text=kernel.number("text"),
        place=KernelPlace(
            kaslr_shift=kernel.number("kaslr_shift"),
            phys_base=kernel.number("phys_base"),
            dtb=kernel.number("dtb"),
            la57=kernel.value("la57") is True,
        ),
        system=System(
            hostname=system.text_or_none("hostname"),
            release=system.text_or_none("release"),
            boot_id=system.text("boot_id"),
            boot_id_known=system.value("boot_id_known") is True,
            boot_ns=None if system.value("boot_ns") is None else system.number("boot_ns"),
        ),
        segments=_segments(top.value("segments")),
    )


class _Fields:
    """Typed access to a JSON object; every miss is a `ValueError`."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError("its header is no object")
        self._value = value

    def value(self, name: str) -> Any:
        return self._value.get(name)

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > 1 << 16:
            raise ValueError(f"its header has no {name}")
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self._value.get(name) is None else self.text(name)

    def number(self, name: str) -> int:
        value = self._value.get(name)
        if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"its header has no {name}")
        return int(value)


def _segments(value: Any) -> tuple[Segment, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_SEGMENTS:
        raise ValueError("its header does not say where RAM lies")
    segments, end = [], 0
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or any(type(number) is not int for number in pair):
            raise ValueError("its header does not say where RAM lies")
        start, length = pair
        if start < end or length <= 0 or start % PAGE_SIZE or start + length > _MAX_RAM:
            raise ValueError("its header says an impossible place of RAM")
        end = start + length
        segments.append(Segment(start=start, length=length))
    return tuple(segments)
