"""Identity and placement of a kernel that was found, as a recording stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from live.linux.kernel import KernelPlace
from symbols.guest import Kernel

_MAX_TEXT = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """A kernel in guest memory.

    ``banner``: text of `linux_banner`.  ``build_id``: GNU build-id, hexadecimal.  ``release``: as `uname -r`
    prints it.  ``text``: gpa of `_text`.
    """

    banner: str
    build_id: str | None
    release: str
    text: int
    place: KernelPlace

    @property
    def title(self) -> str:
        """Name and release, for the output: ``"Linux 6.1.0"``."""
        return f"Linux {self.release}"

    @classmethod
    def of(cls, found: Kernel) -> KernelRecord:
        """The record of a kernel that `symbols.guest.find_kernel` has found."""
        return cls(
            banner=found.banner,
            build_id=found.build_id,
            release=found.release,
            text=found.text,
            place=KernelPlace(
                kaslr_shift=found.kaslr_shift,
                phys_base=found.phys_base,
                root=found.dtb,
                levels=5 if found.la57 else 4,
            ),
        )

    def encode(self) -> dict[str, Any]:
        """As JSON values, for the header of a recording."""
        place = self.place
        return {
            "banner": self.banner,
            "build_id": self.build_id,
            "release": self.release,
            "text": self.text,
            "kaslr_shift": place.kaslr_shift,
            "phys_base": place.phys_base,
            "dtb": place.root,
            "la57": place.levels == 5,
        }

    @classmethod
    def decode(cls, value: object) -> KernelRecord:
        """The inverse of `encode`.  Raises `ValueError`."""
        if not isinstance(value, dict):
            raise ValueError("its header is no object")
        build_id = value.get("build_id")
        return cls(
            banner=_text(value, "banner"),
            build_id=None if build_id is None else _text(value, "build_id"),
            release=_text(value, "release"),
            text=_number(value, "text"),
            place=KernelPlace(
                kaslr_shift=_number(value, "kaslr_shift"),
                phys_base=_number(value, "phys_base"),
                root=_number(value, "dtb"),
                levels=5 if value.get("la57") is True else 4,
            ),
        )


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or len(found) > _MAX_TEXT:
        raise ValueError(f"its header has no {name}")
    return found


def _number(value: dict[str, Any], name: str) -> int:
    found = value.get(name)
    if type(found) is not int or not -(1 << 63) <= found < 1 << 63:
        raise ValueError(f"its header has no {name}")
    return found
