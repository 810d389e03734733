"""The header of a recording: guest, kernel, boot, and how the guest was watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from live.core.memory import PAGE_SIZE, Segment
from live.core.system import System

_MAX_SEGMENTS = 4096
_MAX_RAM = 1 << 44
"""Bytes: page numbers are stored as u32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a recording says of itself.

    ``writer``: program and version.  ``created_ns``: UTC ns since the epoch.  ``target``: the guest's name.
    ``mode``: how it was watched; ``guarantee``: what that mode can miss.  ``title``: operating system and
    release, for the output.  ``os``: its name in `live.watch.systems`.  ``machine``: `Architecture.name`.
    ``kernel``: for `live.core.system.Finder.recall`, which checks it.  ``system``: the boot.  ``segments``:
    guest RAM.
    """

    writer: str
    created_ns: int
    target: str
    mode: str
    guarantee: str
    title: str
    os: str
    machine: str
    kernel: Mapping[str, Any]
    system: System
    segments: Sequence[Segment]

    def encode(self) -> dict[str, Any]:
        """As JSON values."""
        system = self.system
        return {
            "writer": self.writer,
            "created_ns": self.created_ns,
            "target": self.target,
            "mode": self.mode,
            "guarantee": self.guarantee,
            "title": self.title,
            "os": self.os,
            "machine": self.machine,
            "kernel": dict(self.kernel),
            "system": {
                "hostname": system.hostname,
                "release": system.release,
                "boot_id": system.boot_id,
                "boot_id_known": system.boot_id_known,
                "boot_ns": system.boot_ns,
                "key": system.key,
            },
            "segments": [[one.start, one.length] for one in self.segments],
        }


def decode(value: Any) -> Header:
    """The inverse of `Header.encode`.  Raises `ValueError`."""
    top = _Fields(value)
    system = _Fields(top.value("system"))
    kernel = top.value("kernel")
    if not isinstance(kernel, dict):
        raise ValueError("its header has no kernel")
    return Header(
        writer=top.text("writer"),
        created_ns=top.number("created_ns"),
        target=top.text("target"),
        mode=top.text("mode"),
        guarantee=top.text("guarantee"),
        # Optional: files of format version 1 may lack these three.
        title=top.text_or_none("title") or f"Linux {_Fields(kernel).text('release')}",
        os=top.text_or_none("os") or "linux",
        machine=top.text_or_none("machine") or "x86_64",
        kernel=kernel,
        system=System(
            hostname=system.text_or_none("hostname"),
            release=system.text_or_none("release"),
            boot_id=system.text("boot_id"),
            boot_id_known=system.value("boot_id_known") is True,
            boot_ns=None if system.value("boot_ns") is None else system.number("boot_ns"),
            key=system.text_or_none("key") or "",
        ),
        segments=_segments(top.value("segments")),
    )


class _Fields:
    """Typed access to a JSON object; a value that is missing or of another type raises `ValueError`."""

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
