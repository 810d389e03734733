"""Layers that Volatility lacks: 5-level paging, RAM files with a PCI hole, and unreadable input."""

from __future__ import annotations

from typing import Any

from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel, segmented

from symbols import ram_file

ISF_KEY = "isf_url"
"""Config key of the kernel's layer: URL of the symbol table that was chosen for it."""
CLASS_KEY = "isf_class"
"""Config key of the kernel's layer: the Python class that reads this table."""


class LinuxIntel48(intel.LinuxIntel32e):  # type: ignore[misc]
    """4-level paging; its configuration also holds the symbol table of the kernel in it."""

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """Those of the stock layer, and URL and class of the symbol table."""
        return [
            *super().get_requirements(),
            requirements.StringRequirement(
                name=ISF_KEY, description="Symbol table of the kernel in this layer", optional=True
            ),
            requirements.StringRequirement(
                name=CLASS_KEY, description="Class that reads the symbol table", optional=True
            ),
        ]


class LinuxIntel57(LinuxIntel48):
    """5-level paging (LA57): one more table on top, 57-bit addresses (Intel SDM vol. 3A, 4.5)."""

    _maxvirtaddr = 57
    _structure = [("page map layer 5", 9, False), *intel.Intel32e._structure]  # noqa: RUF012 -- Volatility's


KERNELS = {4: LinuxIntel48, 5: LinuxIntel57}
"""Levels of page tables -> layer class of a kernel's address space."""


class RamFileLayer(segmented.SegmentedLayer):  # type: ignore[misc]
    """A raw RAM file that lacks the PCI hole, as guest-physical memory (see `symbols.ram_file`)."""

    def _load_segments(self) -> None:
        size = self.context.layers[self._base_layer].maximum_address + 1
        low = int(self.config["low_end"])
        self._segments = [
            (run.start, run.offset, run.length, run.length) for run in ram_file.split(size, low)
        ]

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """Those of a segmented layer, and the end of low RAM."""
        return [
            *super().get_requirements(),
            requirements.IntRequirement(name="low_end", description="Bytes of RAM below the PCI hole"),
        ]


class UnreadableLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """An empty layer for input that must not be searched like memory.

    Without it the stock stackers would find a kernel's banner in compressed pages, and plugins would print
    an empty list without any error.
    """

    @property
    def minimum_address(self) -> int:
        """There is none; 0."""
        return 0

    @property
    def maximum_address(self) -> int:
        """There is none; 0."""
        return 0

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Never."""
        return False

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Raises `InvalidAddressException`."""
        raise exceptions.InvalidAddressException(self.name, offset, "this input cannot be read as memory")

    def write(self, offset: int, data: bytes) -> None:
        """Raises `InvalidAddressException`."""
        raise exceptions.InvalidAddressException(self.name, offset, "this input cannot be written")

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """None."""
        return []
