"""A fake of pandare and of the machine under it.  PANDA itself was never run.

Same names, signatures and order of things as in pandare 1.8.85 (panda.py: `Panda.run`, `end_analysis`,
`_generated_callback`, `register_callback`, `enable_callback`, `disable_callback`, `delete_callbacks`, `ppp`,
`disable_ppp`, `_memory_read`, `address_to_ram_offset`; arch.py: `X86_64Arch.get_reg`; utils.py:
`plugin_list`), and in PANDA's branch dev, commit c3634879a283 (cpus.c: one thread for all vCPUs, which has
QEMU's big lock while it executes; target/i386/helper.c: ``cpu_x86_update_cr3``; panda/src/callbacks.c;
panda/include/panda/plugin_plugin.h; panda/include/panda/common.h; syscalls2.cpp: ``syscall_callback``;
hw/i386/pc_piix.c: where RAM lies).

`test_panda_real.py` compares the names and parameters with the package, where that is installed.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

GENERAL = [
    *("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"),
    *("R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"),
]
SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS"]
NULL = None
LINUX, UNKNOWN = "linux", None
OUTSIDE = b"outside of guest RAM: QEMU's own memory"
"""What a read gets that begins in RAM and ends behind it: PANDA does not look at that."""


class Env:
    """``CPUX86State``."""

    def __init__(self) -> None:
        self.regs = [0x1000 + number for number in range(16)]
        self.eip = 0xFFFF_FFFF_8100_0000
        self.eflags = 2
        self.cr = [1 << 31, 0, 0, 0x10000, 0x20]
        self.segs = [SimpleNamespace(base=number << 32) for number in range(6)]
        self.kernelgsbase = 0x7FFF_0000_0000


class Cpu:
    """``CPUState``."""

    def __init__(self, index: int) -> None:
        self.cpu_index, self.env_ptr = index, Env()
        self.node = SimpleNamespace(tqe_next=NULL)


class X86_64Arch:
    """`pandare.arch.X86_64Arch`, the part of it that is used."""

    def __init__(self, panda: FakePanda) -> None:
        self.panda = panda
        self.registers = {name: number for number, name in enumerate(GENERAL)}

    def get_pc(self, cpu: Cpu) -> int:
        return cpu.env_ptr.eip

    def get_reg(self, cpu: Cpu, reg: str) -> int:
        reg, env = reg.upper(), cpu.env_ptr
        if reg in SEGMENTS:
            return env.segs[SEGMENTS.index(reg)].base
        if reg in ("EFLAGS", "RFLAGS"):
            return env.eflags
        if reg in ("RIP", "PC"):
            return self.get_pc(cpu)
        if reg.startswith("CR"):
            return env.cr[int(reg[2:])]
        if reg not in self.registers:
            raise ValueError(f"Invalid register name {reg}")
        return env.regs[self.registers[reg]]


class PluginList(dict):
    """`pandare.utils.plugin_list`."""

    def __init__(self, panda: FakePanda) -> None:
        self._panda = panda
        super().__init__()

    def __getitem__(self, name: str) -> object:
        if name not in self:
            self._panda.load_plugin(name)
        return super().__getitem__(name)


class FakePanda:
    """`pandare.Panda` and a PC.  ``ram``: RAM as QEMU has it, ``split`` bytes of it below 4 GiB."""

    def __init__(
        self,
        arch: str = "x86_64",
        os_version: str | None = "linux-64-fake",
        *,
        ram: bytearray | None = None,
        split: int | None = None,
        vcpus: int = 1,
    ) -> None:
        self.arch_name, self.os, self.bits = arch, os_version, 64
        self.arch = X86_64Arch(self)
        self.ffi = SimpleNamespace(NULL=NULL)
        self.plugins = PluginList(self)
        self.panda_args: list[str] = []
        self.catch_exceptions = True
        self.running, self.started, self.initializing = (threading.Event() for _ in range(3))
        self.ending = False
        self.registered_callbacks: dict[str, dict[str, Any]] = {}
        self.main_loop_wait_fnargs: list[tuple[Callable[..., object], list[Any]]] = []
        # The native side.
        self.ram = bytearray(4 << 20) if ram is None else ram
        self.split = len(self.ram) if split is None else split
        self.libpanda = SimpleNamespace(ram_size=0)
        self.cpus = [Cpu(number) for number in range(vcpus)]
        for one, other in zip(self.cpus, self.cpus[1:], strict=False):
            one.node.tqe_next = other
        self.code: dict[int, bytes] = {}
        self.big_lock = threading.Lock()
        self._owner = 0
        """The thread that has it."""
        self.asid_list: list[SimpleNamespace] = []
        self.sys_enter_list: list[Callable[..., object]] = []
        self.forbidden = 0
        self._break_loop = False
        self._program: queue.Queue[Callable[[], None]] = queue.Queue()

    # -- pandare: running

    def run(self) -> None:
        self.main_loop_wait_fnargs = []
        self.ending = False
        self.initializing.set()
        self.libpanda.ram_size = len(self.ram)  # panda_init
        self.initializing.clear()
        self.started.set()
        for name in self.registered_callbacks:
            if name.startswith("__"):
                self.enable_callback(name)
        self.running.set()
        self._panda_run()
        self.running.clear()
        self.delete_callbacks()
        self.plugins = PluginList(self)
        if hasattr(self, "exit_exception"):
            saved = self.exit_exception
            del self.exit_exception
            raise saved

    def end_analysis(self) -> None:
        self.ending = True
        self.main_loop_wait_fnargs.append((self._unload_pyplugins, []))
        self.main_loop_wait_fnargs.append((self._unload_plugins, []))
        if self.running.is_set() or self.initializing.is_set():
            self.stop_run()

    def stop_run(self) -> None:
        self._break_loop = True

    def _unload_pyplugins(self) -> None:
        while self.registered_callbacks:
            self.delete_callback(next(iter(self.registered_callbacks)))

    def _unload_plugins(self) -> None:
        self.sys_enter_list.clear()

    # -- pandare: callbacks

    def cb_asid_changed(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            return self._generated_callback(**{"name": args[0].__name__})(args[0])
        return self._generated_callback(**kwargs)

    def _generated_callback(
        self, name: str | None = None, procname: None = None, enabled: bool = True
    ) -> Any:
        def decorator(fun: Callable[..., object]) -> Callable[..., object]:
            def run_and_catch(*args: Any) -> bool:
                if hasattr(self, "exit_exception"):
                    return False
                try:
                    result = fun(*args)
                    return bool(result) if isinstance(result, int) else False  # ffi.cast, TypeError: 0
                except Exception as error:
                    self._caught(error)
                    return False

            self._register_callback(run_and_catch, name or fun.__name__, enabled)
            return run_and_catch

        return decorator

    def _caught(self, error: Exception) -> None:
        if not self.catch_exceptions:
            raise error
        self.exit_exception = error
        self.end_analysis()

    def _register_callback(self, function: Callable[..., object], name: str, enabled: bool) -> None:
        if name in self.registered_callbacks:
            self.delete_callback(name)
        entry = SimpleNamespace(entry=function, enabled=True)
        self.asid_list.append(entry)
        self.registered_callbacks[name] = {"enabled": True, "pcb": entry, "function": function}
        if not enabled:
            self.disable_callback(name)

    def enable_callback(self, name: str) -> None:
        self._switch(name, True)

    def disable_callback(self, name: str, forever: bool = False) -> None:
        self._switch(name, False)
        if forever:
            del self.registered_callbacks[name]

    def _switch(self, name: str, enabled: bool) -> None:
        if self.ending:
            return
        if name not in self.registered_callbacks:
            raise RuntimeError(f"No callback has been registered with name '{name}'")
        self.registered_callbacks[name]["enabled"] = enabled
        self.registered_callbacks[name]["pcb"].enabled = enabled

    def delete_callback(self, name: str) -> None:
        if name not in self.registered_callbacks:
            raise ValueError(f"No callback has been registered with name '{name}'")
        assert not self._on_other_thread(), "a list was changed while the vCPUs' thread may go through it"
        self.asid_list.remove(self.registered_callbacks.pop(name)["pcb"])

    def delete_callbacks(self) -> None:
        while self.registered_callbacks:
            self.delete_callback(next(iter(self.registered_callbacks)))
        for name in list(getattr(self, "ppp_registered_cbs", ())):
            self.disable_ppp(name)

    def load_plugin(self, name: str, args: dict[str, str] | None = None) -> None:
        if name != "syscalls2" or self.os is None:
            raise SystemExit(f"PANDA ends itself: {name} cannot be loaded (OS_UNKNOWN)")
        self.plugins[name] = SimpleNamespace()

    def ppp(self, plugin_name: str, attr: str, name: str | None = None, autoload: bool = True) -> Any:
        if not hasattr(self, "ppp_registered_cbs"):
            self.ppp_registered_cbs: dict[str, tuple[Callable[..., object], str, str]] = {}

        def decorator(fun: Callable[..., object]) -> Callable[..., object]:
            def run_and_catch(*args: Any) -> None:
                if not hasattr(self, "exit_exception"):
                    try:
                        fun(*args)
                    except Exception as error:
                        self._caught(error)

            local_name = fun.__name__ if name is None else name
            if local_name in self.ppp_registered_cbs:
                self.disable_ppp(local_name)
            self.ppp_registered_cbs[local_name] = (run_and_catch, plugin_name, attr)
            assert attr == "on_all_sys_enter"
            self.plugins[plugin_name]
            self.sys_enter_list.append(run_and_catch)
            return run_and_catch

        return decorator

    def disable_ppp(self, name: str) -> None:
        function, _, _ = self.ppp_registered_cbs[name]
        assert not self._on_other_thread(), "a list was changed while the vCPUs' thread may go through it"
        with contextlib.suppress(ValueError):  # ppp_remove_cb_... returns false
            self.sys_enter_list.remove(function)
        del self.ppp_registered_cbs[name]

    def _on_other_thread(self) -> bool:
        return self.running.is_set() and threading.get_ident() != self._owner

    # -- pandare: memory and vCPUs

    def physical_memory_read(self, addr: int, length: int, fmt: str = "bytearray") -> bytes:
        offset = self._ram_offset(addr & (1 << self.bits) - 1)
        if offset is None:
            raise ValueError(f"Failed to read guest memory at {addr:x} got err=-1")
        data = bytes(self.ram[offset : offset + length])
        return data + (OUTSIDE * (length // len(OUTSIDE) + 1))[: length - len(data)]

    def virtual_memory_read(self, cpu: Cpu, addr: int, length: int, fmt: str = "bytearray") -> bytes:
        if addr not in self.code:
            raise ValueError(f"Failed to read guest memory at {addr:x} got err=-1")
        return self.code[addr][:length]

    def address_to_ram_offset(self, hwaddr: int, is_write: bool) -> int:
        offset = self._ram_offset(hwaddr)
        if offset is None:
            raise ValueError("address_to_ram_offset returned 2")
        return offset

    def _ram_offset(self, gpa: int) -> int | None:
        if not self.libpanda.ram_size:
            raise RuntimeError("segmentation fault: there is no machine yet")
        if 0 <= gpa < self.split and not 0xA0000 <= gpa < 0xC0000:
            return gpa
        above = gpa - (1 << 32) + self.split
        return above if self.split <= above < len(self.ram) else None

    def current_asid(self, cpu: Cpu) -> int:
        return cpu.env_ptr.cr[3]

    def get_cpu(self) -> Cpu:
        if not self.libpanda.ram_size:
            raise RuntimeError("segmentation fault: there is no machine yet")
        return self.cpus[0]

    # -- QEMU

    def _panda_run(self) -> None:
        self._break_loop = False
        stopping = threading.Event()
        vcpus = threading.Thread(target=self._execute, args=(stopping,), daemon=True)
        vcpus.start()
        while not self._break_loop:
            with self.big_lock:
                self._owner = threading.get_ident()
                todo, self.main_loop_wait_fnargs = self.main_loop_wait_fnargs, []
                for function, arguments in todo:
                    function(*arguments)
                self._owner = 0
            time.sleep(0.001)
        stopping.set()
        vcpus.join()

    def _execute(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                instruction = self._program.get(timeout=0.005)
            except queue.Empty:
                continue
            with self.big_lock:
                self._owner = threading.get_ident()
                instruction()
                self._owner = 0

    # -- what the guest does; each returns at once

    def load_root(self, root: int, *, vcpu: int = 0) -> None:
        """Write the page-table root register."""

        def instruction() -> None:
            cpu = self.cpus[vcpu]
            forbidden = False
            for one in list(self.asid_list):
                if one.enabled:
                    forbidden |= one.entry(cpu, cpu.env_ptr.cr[3], root)
            if forbidden:
                self.forbidden += 1
            else:
                cpu.env_ptr.cr[3] = root

        self._program.put(instruction)

    def call(
        self, number: int, *, instruction: bytes = b"\x0f\x05", pc: int = 0x400000, first: int = 0
    ) -> None:
        """Make a system call; ``first``: its first argument."""

        def step() -> None:
            self.code[pc] = instruction
            cpu = self.cpus[0]  # syscalls2 says first_cpu
            cpu.env_ptr.regs[0] = number
            cpu.env_ptr.regs[GENERAL.index("RDI" if instruction == b"\x0f\x05" else "RBX")] = first
            for one in list(self.sys_enter_list):
                one(cpu, pc, number & 0xFFFF_FFFF)

        self._program.put(step)

    def write(self, gpa: int, data: bytes) -> None:
        """Store to memory."""

        def instruction() -> None:
            offset = self._ram_offset(gpa)
            assert offset is not None
            self.ram[offset : offset + len(data)] = data

        self._program.put(instruction)

    def do(self, instruction: Callable[[], object]) -> None:
        """Whatever else."""
        self._program.put(instruction)

    def done(self, patience: float = 10.0) -> Callable[[], None]:
        """Returns what waits until everything so far was executed, or the machine has ended."""
        reached = threading.Event()
        self._program.put(reached.set)

        def wait() -> None:
            deadline = time.monotonic() + patience
            while not reached.wait(0.01):
                if not self.running.is_set():
                    return
                assert time.monotonic() < deadline, "the guest's work does not come to its end"

        return wait
