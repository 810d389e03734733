"""A guest in a bytearray: a task list, mm, creds, paths and page tables, laid out by an ISF of its own.

For unit tests only: the proof is a real kernel.  The layout is deliberately none that any kernel has.
"""

import json
import struct

from live.arch.x86_64 import X86_64
from live.core.errors import MemoryFault
from live.core.memory import InPlace, Segment
from live.linux.kernel import PF_EXITING, PF_FORKNOEXEC, PF_KTHREAD, KernelPlace, LinuxKernel
from live.linux.layout import SymbolTable
from live.linux.machines import MACHINES
from live.linux.record import KernelRecord
from live.linux.system import LinuxSystem

RAM = 1 << 21
START_KERNEL_MAP = MACHINES[X86_64.name].image
DIRECT = 0xFFFF888000000000
IMAGE_GPA = 0x10000
SHIFT = 0x3000000

_BASE = {
    "unsigned int": (4, False, "int"),
    "int": (4, True, "int"),
    "unsigned long": (8, False, "int"),
    "long": (8, True, "int"),
    "char": (1, True, "char"),
    "pointer": (8, False, "int"),
}
_P, _U32, _I32, _U64, _S64 = "pointer", "unsigned int", "int", "unsigned long", "long"

# type -> {member: (offset, type)}; a dict as a type is an inline struct of that name.
TYPES = {
    "list_head": {"next": (0, _P), "prev": (8, _P)},
    "atomic_t": {"counter": (0, _I32)},
    "kuid_t": {"val": (0, _U32)},
    "kgid_t": {"val": (0, _U32)},
    "idr": {"idr_next": (20, _U32)},
    "task_struct": {
        "comm": (8, ("char", 16)),
        "flags": (24, _U32),
        "in_execve": (28, ("bits", 1, 1)),
        "tasks": (40, "list_head"),
        "pid": (56, _I32),
        "tgid": (60, _I32),
        "mm": (64, _P),
        "real_parent": (72, _P),
        "group_leader": (80, _P),
        "signal": (88, _P),
        "real_cred": (96, _P),
        "start_boottime": (104, _U64),
        "self_exec_id": (112, _U64),
        "exit_state": (120, _I32),
        "exit_code": (124, _I32),
        "thread_node": (128, "list_head"),
        "fs": (144, _P),
        "nsproxy": (152, _P),
        "thread_pid": (160, _P),
        "cgroups": (168, _P),
        "__state": (176, _U32),
        "stack_canary": (184, _U64),
    },
    "signal_struct": {
        "live": (4, "atomic_t"),
        "nr_threads": (8, _I32),
        "flags": (12, _U32),
        "group_exit_code": (16, _I32),
        "thread_head": (24, "list_head"),
        "pids": (40, ("pointer", 4)),
        "curr_target": (72, _P),
    },
    "mm_struct": {
        "pgd": (16, _P),
        "exe_file": (24, _P),
        "arg_start": (32, _U64),
        "arg_end": (40, _U64),
        "env_start": (48, _U64),
        "env_end": (56, _U64),
    },
    "cred": {
        "uid": (4, "kuid_t"),
        "gid": (8, "kgid_t"),
        "euid": (12, "kuid_t"),
        "egid": (16, "kgid_t"),
        "user_ns": (24, _P),
    },
    "pid_namespace": {"idr": (8, "idr"), "ns": (40, "ns_common")},
    "upid": {"nr": (0, _I32), "ns": (8, _P)},
    "pid": {"level": (4, _U32), "numbers": (16, ("upid", 1))},
    "nsproxy": {
        "uts_ns": (8, _P),
        "ipc_ns": (16, _P),
        "mnt_ns": (24, _P),
        "net_ns": (32, _P),
        "cgroup_ns": (40, _P),
    },
    "new_utsname": {"nodename": (0, ("char", 65)), "release": (65, ("char", 65))},
    "uts_namespace": {"ns": (0, "ns_common"), "name": (16, "new_utsname")},
    "path": {"mnt": (0, _P), "dentry": (8, _P)},
    "fs_struct": {"root": (8, "path"), "pwd": (24, "path")},
    "file": {"f_path": (16, "path")},
    "qstr": {"len": (4, _U32), "name": (8, _P)},
    "hlist_bl_node": {"pprev": (8, _P)},
    "dentry": {
        "d_hash": (0, "hlist_bl_node"),
        "d_parent": (24, _P),
        "d_name": (32, "qstr"),
        "d_inode": (48, _P),
        "d_iname": (56, ("char", 32)),
        "d_op": (96, _P),
    },
    "dentry_operations": {"d_dname": (32, _P)},
    "inode": {"i_ino": (24, _U64), "i_private": (40, _P)},
    "ns_common": {"inum": (8, _U32), "ops": (16, _P)},
    "proc_ns_operations": {"name": (0, _P)},
    "vfsmount": {"mnt_root": (0, _P)},
    "mount": {"mnt_parent": (0, _P), "mnt_mountpoint": (8, _P), "mnt": (16, "vfsmount")},
    "tk_read_base": {"xtime_nsec": (0, _U64), "base": (8, _S64), "shift": (16, _U32)},
    "timekeeper": {
        "offs_real": (0, _S64),
        "offs_boot": (8, _S64),
        "xtime_sec": (16, _U64),
        "tkr_mono": (24, "tk_read_base"),
    },
    # As on PREEMPT_RT: a counter, and the lock that belongs to it.
    "seqcount": {"sequence": (0, _U32)},
    "seqcount_raw_spinlock": {"seqcount": (0, "seqcount"), "lock": (8, _P)},
    "unnamed_1": {"seq": (0, "seqcount_raw_spinlock"), "timekeeper": (16, "timekeeper")},
}
SIZES = {
    "list_head": 16,
    "atomic_t": 4,
    "kuid_t": 4,
    "kgid_t": 4,
    "path": 16,
    "upid": 16,
    "qstr": 16,
    "seqcount": 4,
}
SIZES |= {"seqcount_raw_spinlock": 16, "tk_read_base": 24, "new_utsname": 130}
SYMBOLS = {
    "init_task": 0x1000,
    "total_forks": 0x100,
    "nr_threads": 0x108,
    "init_pid_ns": 0x200,
    "page_offset_base": 0x110,
    "simple_dname": 0x3000,
    "pipefs_dname": 0x3100,
    "_end": 0x8000,
}
MORE = {"tk_core": 0x400, "sysctl_bootid": 0x500, "init_uts_ns": 0x600}
"""Symbols of guests that ask for them."""


def _type(kind):
    if isinstance(kind, tuple) and kind[0] == "bits":
        base = {"kind": "base", "name": _U32}
        return {"kind": "bitfield", "bit_position": kind[1], "bit_length": kind[2], "type": base}
    if isinstance(kind, tuple):
        return {"kind": "array", "count": kind[1], "subtype": _type(kind[0])}
    if kind == _P:
        return {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}
    return {"kind": "base" if kind in _BASE else "struct", "name": kind}


def write_isf(path, drop=(), more=None):
    """Write the ISF; types and members in ``drop`` ("type.member") are left out.

    ``more``: symbols of `MORE`, with their types or None.
    """
    found = {name: {"address": START_KERNEL_MAP + at} for name, at in SYMBOLS.items()}
    for name, kind in (more or {}).items():
        found[name] = {"address": START_KERNEL_MAP + MORE[name], **({"type": _type(kind)} if kind else {})}
    base = {
        name: {"size": size, "signed": signed, "kind": kind, "endian": "little"}
        for name, (size, signed, kind) in _BASE.items()
    }
    base["void"] = {"size": 0, "signed": False, "kind": "void", "endian": "little"}
    document = {
        "metadata": {"format": "6.2.0", "producer": {"name": "test", "version": "0", "datetime": ""}},
        "base_types": base,
        "enums": {},
        "user_types": {
            name: {
                "kind": "struct",
                "size": SIZES.get(name, 256),
                "fields": {
                    member: {"offset": offset, "type": _type(kind)}
                    for member, (offset, kind) in members.items()
                    if f"{name}.{member}" not in drop
                },
            }
            for name, members in TYPES.items()
            if name not in drop
        },
        "symbols": found,
    }
    path.write_text(json.dumps(document))
    return path


class Memory(InPlace):
    """A MemoryReader over one bytearray; ``mapped`` False hides the flat view."""

    def __init__(self, ram, mapped=True):
        self.ram = ram
        self.segments = (Segment(start=0, length=len(ram)),)
        self.flat = memoryview(ram) if mapped else None
        self.reads = 0

    def read(self, gpa, length):
        self.reads += 1
        if gpa < 0 or gpa + length > len(self.ram):
            raise MemoryFault(max(gpa, len(self.ram)))
        return bytes(self.ram[gpa : gpa + length])


class SyntheticGuest:
    """Builds tasks; `kernel()` gives the introspection over them."""

    def __init__(self, tmp_path, drop=(), mapped=True, more=None):
        self.ram = bytearray(RAM)
        self.isf = write_isf(tmp_path / "synthetic.json", drop, more)
        self.memory = Memory(self.ram, mapped)
        self._free = 0x40000
        self.dtb = self.allocate(4096, align=0x2000) - DIRECT
        self.put(self.global_("page_offset_base"), "<Q", DIRECT)
        self.init_task = self.global_("init_task")
        self.tasks = [self.init_task]
        signal = self.new("signal_struct", live=1, nr_threads=1)
        self.set(self.init_task, "task_struct", tgid=0, pid=0, signal=signal, real_cred=self.new("cred"))
        self.link()

    def global_(self, name):
        return START_KERNEL_MAP + {**SYMBOLS, **MORE}[name] + SHIFT

    def gpa(self, address):
        if address >= START_KERNEL_MAP:
            return address - START_KERNEL_MAP - SHIFT + IMAGE_GPA
        return address - DIRECT

    def put(self, address, form, value):
        struct.pack_into(form, self.ram, self.gpa(address), value)

    def allocate(self, size, align=64):
        self._free = -(-self._free // align) * align
        address = self._free + DIRECT
        self._free += size
        return address

    def new(self, kind, **values):
        address = self.allocate(256)
        self.set(address, kind, **values)
        return address

    def set(self, address, kind, **values):
        for member, value in values.items():
            offset, of = TYPES[kind][member]
            if isinstance(value, bytes):
                self.ram[self.gpa(address + offset) :][: len(value)]
                start = self.gpa(address + offset)
                self.ram[start : start + len(value)] = value
            elif isinstance(of, tuple) and of[0] == "bits":
                self.put(address + offset, "<I", value << of[1])
            else:
                inner = _BASE.get(of, (SIZES.get(of, 8), False, ""))
                self.put(
                    address + offset,
                    {4: "<i" if inner[1] else "<I", 8: "<q" if inner[1] else "<Q"}[inner[0]],
                    value,
                )

    def task(
        self, pid, comm=b"sh", *, parent=None, uid=0, kernel=False, threads=1, dead=False, code=0, **values
    ):
        signal = self.new("signal_struct", live=0 if dead else threads, nr_threads=threads)
        # At an odd page, as a pgd may be without PTI since 6.15.
        pgd = self.allocate(0x2000, align=0x2000) + 0x1000
        mm = 0 if kernel or dead else self.new("mm_struct", pgd=pgd)
        address = self.new(
            "task_struct",
            pid=pid,
            tgid=pid,
            comm=comm,
            flags=(PF_KTHREAD if kernel else PF_FORKNOEXEC) | (PF_EXITING if dead else 0),
            signal=signal,
            thread_pid=self.new("pid"),
            mm=mm,
            real_parent=parent or self.init_task,
            real_cred=self.new("cred", uid=uid, euid=uid),
            start_boottime=pid * 1000,
            exit_code=code,
            exit_state=0x20 if dead else 0,
        )
        self.set(address, "task_struct", group_leader=address, **values)
        self.set(signal, "signal_struct", curr_target=address)
        head = signal + TYPES["signal_struct"]["thread_head"][0]
        nodes = [address]
        for extra in range(1, threads):
            nodes.append(self.new("task_struct", pid=pid + extra * 10000, tgid=pid, start_boottime=extra))
        chain = [node + TYPES["task_struct"]["thread_node"][0] for node in nodes] + [head]
        for here, after in zip([head, *chain], chain, strict=False):
            self.put(here, "<Q", after)
        self.tasks.append(address)
        self.link()
        return address

    def link(self):
        offset = TYPES["task_struct"]["tasks"][0]
        for here, after in zip(self.tasks, [*self.tasks[1:], self.tasks[0]], strict=True):
            self.put(here + offset, "<Q", after + offset)
            self.put(after + offset + 8, "<Q", here + offset)

    def counters(self, forks, threads, cursor):
        self.put(self.global_("total_forks"), "<Q", forks)
        self.put(self.global_("nr_threads"), "<I", threads)
        self.put(self.global_("init_pid_ns") + 28, "<I", cursor)

    def map_user(self, pgd, address, data):
        """Map ``data`` at a page-aligned user address, in 4 KiB pages below the given top-level table."""
        for start in range(0, len(data), 4096):
            table = pgd
            for shift in (39, 30, 21):
                entry = table + ((address + start >> shift) & 0x1FF) * 8
                (value,) = struct.unpack_from("<Q", self.ram, self.gpa(entry))
                if not value & 1:
                    value = (self.allocate(4096, align=4096) - DIRECT) | 7
                    self.put(entry, "<Q", value)
                table = (value & ~0xFFF) + DIRECT
            page = self.allocate(4096, align=4096)
            self.put(table + ((address + start >> 12) & 0x1FF) * 8, "<Q", (page - DIRECT) | 7)
            chunk = data[start : start + 4096]
            at = self.gpa(page)
            self.ram[at : at + len(chunk)] = chunk

    def record(self):
        place = KernelPlace(kaslr_shift=SHIFT, phys_base=IMAGE_GPA - SHIFT, root=self.dtb, levels=4)
        return KernelRecord(
            banner="Linux version 9.9 (test)\n", build_id=None, release="9.9", text=IMAGE_GPA, place=place
        )

    def kernel(self, memory=None):
        return LinuxKernel(memory or self.memory, SymbolTable(self.isf), self.record().place, X86_64)

    def system(self, memory=None, *, system=None):
        return LinuxSystem(self.kernel(memory), self.record(), system=system)
