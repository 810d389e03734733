"""The part of pandare that is used, as its sources have it (pandare 1.8.85: panda.py, arch.py).

What cffi hands out has no types; here it gets those that the sources say.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Protocol

AsidChanged = Callable[["Cpu", int, int], bool]
"""(vCPU, value of the page-table root register, value to come); True would forbid the change."""
SysEnter = Callable[["Cpu", int, int], None]
"""(vCPU, guest-virtual address of the instruction, number of the system call)."""


class Event(Protocol):
    """A `threading.Event`."""

    def is_set(self) -> bool:
        """Whether it has happened."""

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it happens within so many seconds."""


class Node(Protocol):
    """A link of QEMU's list of vCPUs."""

    tqe_next: Cpu
    """The next one, or `Foreign.NULL`."""


class Cpu(Protocol):
    """``CPUState *``."""

    cpu_index: int
    node: Node
    env_ptr: object
    """The architecture's registers, ``CPUX86State *``."""


class Arch(Protocol):
    """``panda.arch``, a `pandare.arch.PandaArch`."""

    def get_pc(self, cpu: Cpu) -> int:
        """The program counter."""

    def get_reg(self, cpu: Cpu, reg: str) -> int:
        """A register by name, in whatever case.  Raises `ValueError` for a name that PANDA does not know."""


class Library(Protocol):
    """``panda.libpanda``, the native library."""

    ram_size: int
    """Bytes of guest RAM, as ``-m`` has it."""


class Foreign(Protocol):
    """``panda.ffi``."""

    NULL: object


class Panda(Protocol):
    """`pandare.Panda`."""

    arch_name: str
    arch: Arch
    libpanda: Library
    ffi: Foreign
    os: str | None
    """The operating system that PANDA was told (``os_version``)."""
    plugins: Container[str]
    """C plugins that are loaded."""
    running: Event
    """Set while `run` has given control to the machine."""
    ending: bool
    """`end_analysis` was called; the next `run` clears it."""
    registered_callbacks: Mapping[str, object]
    """By name; emptied when `run` returns, behind the end of `running`."""

    def load_plugin(self, name: str) -> None:
        """Load a C plugin."""

    def cb_asid_changed(self, *, name: str, enabled: bool) -> Callable[[AsidChanged], object]:
        """A decorator that registers a callback."""

    def enable_callback(self, name: str) -> None:
        """From now on it is called.  Raises `RuntimeError` for a name that is not registered."""

    def disable_callback(self, name: str) -> None:
        """From now on it is not called.  Raises `RuntimeError`."""

    def ppp(self, plugin_name: str, attr: str, name: str) -> Callable[[SysEnter], object]:
        """A decorator that registers a callback of a plugin's; it is called from now on."""

    def disable_ppp(self, name: str) -> None:
        """Remove a callback of a plugin's.  Raises `KeyError`."""

    def physical_memory_read(self, addr: int, length: int) -> bytes:
        """Raises `ValueError` if ``addr`` is not RAM.  What is behind the end of RAM is not checked."""

    def virtual_memory_read(self, cpu: Cpu, addr: int, length: int) -> bytes:
        """Through the page tables in force.  Raises `ValueError`."""

    def address_to_ram_offset(self, hwaddr: int, is_write: bool) -> int:
        """Where QEMU has a gpa, in bytes from the start of all RAM.  Raises `ValueError` if it is no RAM."""

    def current_asid(self, cpu: Cpu) -> int:
        """The page-table root register."""

    def get_cpu(self) -> Cpu:
        """The first vCPU."""
