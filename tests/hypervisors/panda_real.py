"""Runs pandare itself, over a native library that stands in for PANDA's (panda_stub.c), under our adapter.

For a process of its own, as pandare takes it over: ``python -m tests.hypervisors.panda_real FOLDER``.  Prints
what it saw as JSON on the last line.  PANDA is not run by it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from live.arch.x86_64 import X86_64
from live.core.errors import GuestGone
from live.core.memory import GuestPhysical
from live.core.traps import Abi, Action, AsidChange, CallFlags, Syscall, TrapRequest, Word
from live.hypervisors.panda import PandaGuest, guest

SOURCE = Path(__file__).with_name("panda_stub.c")
WORD = Word(gpa=GuestPhysical(0x200000))
RAM = 8 << 20
SECONDS = 10.0


def build(folder: Path) -> None:
    """Both libraries, with the offsets that pandare goes by."""
    from pandare.autogen.panda_x86_64_64 import ffi

    cpu, env, types = "CPUState", "CPUX86State", ffi.typeof("panda_cb_type").relements
    numbers = {
        "RAM": RAM,
        "SIZE_CPU": ffi.sizeof(cpu),
        "SIZE_ENV": ffi.sizeof(env),
        "ENV_PTR": ffi.offsetof(cpu, "env_ptr"),
        "REGS": ffi.offsetof(env, "regs"),
        "EIP": ffi.offsetof(env, "eip"),
        "CR": ffi.offsetof(env, "cr"),
        "SEGS": ffi.offsetof(env, "segs"),
        "SEGMENT": ffi.sizeof("SegmentCache"),
        "BASE": ffi.offsetof("SegmentCache", "base"),
        "KERNELGS": ffi.offsetof(env, "kernelgsbase"),
        "ASID_CHANGED": types["PANDA_CB_ASID_CHANGED"],
        "MAIN_LOOP_WAIT": types["PANDA_CB_MAIN_LOOP_WAIT"],
    }
    defines = [f"-D{name}={value}" for name, value in numbers.items()] + [f'-DPLUGINS="{folder}"']
    for name, more in (("libpanda-x86_64.so", []), ("panda_syscalls2.so", ["-DPLUGIN"])):
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", *defines, *more]
        subprocess.run([*command, "-o", str(folder / name), str(SOURCE), "-ldl", "-pthread"], check=True)


def taken(source: Any, number: int) -> list[Any]:
    """So many traps, each resumed."""
    traps = []
    while len(traps) < number:
        trap = source.wait(SECONDS)
        assert trap is not None, "no trap"
        traps.append(trap)
        source.resume(trap)
    return traps


def watch(panda: Any, made: PandaGuest) -> dict[str, object]:
    """What the adapter sees of it, in the order in which it is asked."""
    seen: dict[str, object] = {}
    memory = made.memory
    seen["segments"] = [(one.start, one.length) for one in memory.segments]
    seen["info"] = [made.info.memory, made.info.vcpus]
    values = made.registers.read(made.registers.vcpus[0])
    seen["bases"] = [values["gs_base"], values["k_gs_base"]]
    seen["registers"] = len(values)
    source = made.open(X86_64, frozenset({AsidChange, Syscall}), SECONDS)

    source.arm(TrapRequest(asid_changes=Action.HOLD))
    trap = source.wait(SECONDS)
    assert isinstance(trap, AsidChange)
    before = bytes(memory.read(WORD.gpa, 8)), panda.current_asid(panda.get_cpu())
    time.sleep(0.2)
    seen["stands"] = before == (bytes(memory.read(WORD.gpa, 8)), panda.current_asid(panda.get_cpu()))
    seen["before it happens"] = X86_64.asid_of(before[1]) == trap.asid != trap.new_asid
    source.resume(trap)
    seen["asids"] = len({one.asid for one in taken(source, 20)})

    source.arm(TrapRequest(syscalls=frozenset({59, 11}), compat_syscalls=frozenset({11})))
    calls = taken(source, 11)[1:]  # the first may have been on its way
    seen["calls"] = sorted({(one.number, one.abi.name, one.pc) for one in calls})
    seen["number in a register"] = all(X86_64.asid_of(one.asid) != 0x10000 for one in calls)

    flags = CallFlags(number=57, abi=Abi.NATIVE, bits=1)
    source.arm(TrapRequest(syscalls=frozenset({57}), call_flags=frozenset({flags})))
    calls = taken(source, 11)[1:]
    seen["flags"] = all(one.number == 57 and one.registers["rdi"] & 1 for one in calls)

    source.arm(TrapRequest(words=(WORD,)))
    moved = taken(source, 11)[1:]  # the first may have moved before asid changes were called back
    seen["moved"] = [
        all(one.moved and one.held for one in moved),
        {one.new_asid for one in moved} == {0x10000},
        {one.words for one in moved} == {(WORD.gpa,)},
    ]

    source.arm(TrapRequest(every_syscall=Action.RECORD))
    seen["recorded"] = not any(one.held for one in taken(source, 30) if isinstance(one, Syscall))
    counters = source.counters
    seen["lost"] = [counters.dropped, counters.hold_timeouts]

    source.close()
    leave(panda, made, seen)
    return seen


def leave(panda: Any, made: PandaGuest, seen: dict[str, object]) -> None:
    """What is left of it, what a hold that nobody ends does, and what the end of the run does."""
    deadline = time.monotonic() + SECONDS
    while panda.ppp_registered_cbs and time.monotonic() < deadline:
        time.sleep(0.01)
    seen["callbacks left"] = len(panda.ppp_registered_cbs)
    calls_before = panda.libpanda_stub.stub_calls
    time.sleep(0.1)
    seen["called while nothing is wanted"] = panda.libpanda_stub.stub_calls - calls_before

    short = made.open(X86_64, frozenset({AsidChange}), 0.2)
    short.arm(TrapRequest(asid_changes=Action.HOLD))
    assert short.wait(SECONDS) is not None
    time.sleep(0.3)  # not resumed
    seen["timeouts"] = short.counters.hold_timeouts >= 1
    short.close()

    held = made.open(X86_64, frozenset({AsidChange}), 60.0)
    held.arm(TrapRequest(asid_changes=Action.HOLD))
    assert held.wait(SECONDS) is not None
    panda.end_analysis()  # with the vCPU held
    try:
        held.wait(SECONDS)
    except GuestGone:
        seen["gone"] = not made.alive()
    made.close()


def main(folder: Path) -> int:
    """One run; 0 if nothing failed."""
    build(folder)
    from pandare import Panda

    panda = Panda(
        arch="x86_64",
        mem="8M",
        os_version="linux-64-stub",
        raw_monitor=True,
        libpanda_path=str(folder / "libpanda-x86_64.so"),
        plugin_path=str(folder),
        biospath=str(folder),
    )
    panda.libpanda_stub = Stub(folder)
    made = guest(panda)
    seen: dict[str, object] = {}

    def reader() -> None:
        try:
            seen.update(watch(panda, made))
        except BaseException as error:
            seen["error"] = repr(error)
            panda.end_analysis()

    thread = threading.Thread(target=reader)
    thread.start()
    began = time.monotonic()
    panda.run()
    thread.join(SECONDS)
    seen["returned"] = not thread.is_alive() and time.monotonic() - began < 3 * SECONDS
    seen["forbidden"] = panda.libpanda_stub.stub_forbidden
    print(json.dumps(seen), flush=True)
    return 0


class Stub:
    """The counters of the stand-in, by another handle on the same library."""

    def __init__(self, folder: Path) -> None:
        """The library is loaded already."""
        self._library = ctypes.CDLL(str(folder / "libpanda-x86_64.so"))

    def __getattr__(self, name: str) -> int:
        return ctypes.c_uint64.in_dll(self._library, name).value


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # pandare leaves threads behind
