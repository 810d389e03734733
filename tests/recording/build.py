"""Recordings of the synthetic guest."""

import json

from live.core.system import System
from live.core.traps import CodeHit
from live.linux.points import POINTS
from live.recording.header import Header
from live.recording.hold import no_hold
from live.recording.live_memory import RecordingMemory
from live.recording.stepper import Frames, RecordingStepper
from live.recording.writer import Writer
from live.watch.stepper import Stepper
from tests.linux import synthetic

SYSTEM = System(hostname="lab", release="9.9", boot_id="b" * 36, boot_id_known=True, boot_ns=10**18)
FUNCTIONS = {point.function: 0x2000 + 16 * i for i, point in enumerate(POINTS)}
FORK, EXEC, DEATH = FUNCTIONS
NOW = 1_700_000_000_000_000_000


class Lab:
    """A synthetic guest that is recorded; ``live`` holds the events as they were seen."""

    def __init__(self, tmp_path, frames=None, *, path=None, level=3, hold=no_hold, force=False):
        self.guest = synthetic.SyntheticGuest(tmp_path)
        document = json.loads(self.guest.isf.read_text())
        for name, at in FUNCTIONS.items():
            document["symbols"][name] = {"address": synthetic.START_KERNEL_MAP + at}
        self.guest.isf.write_text(json.dumps(document))
        self.memory = RecordingMemory(self.guest.memory)
        self.header = Header(
            writer="test",
            created_ns=NOW,
            target="vm",
            mode="plugin",
            guarantee="all",
            title="Linux 9.9",
            os="linux",
            machine="x86_64",
            kernel=self.guest.record().encode(),
            system=SYSTEM,
            segments=self.guest.memory.segments,
        )
        self.path = path or tmp_path / "run.pse"
        self.writer = Writer(self.path, self.header, self.guest.isf.read_bytes(), level=level, force=force)
        self.memory.begin()
        system = self.guest.system(self.memory, system=SYSTEM)
        self.writer.step("setup", NOW, self.memory.end())
        self.kernel = system.kernel
        self.steps = RecordingStepper(Stepper(system), self.memory, self.writer, frames or Frames(), hold)
        self.live = []
        self.time = NOW
        self.forks = 0
        self.sequence = 0

    def snapshot(self, trigger="timer"):
        self.time += 1_000_000
        events = self.steps.snapshot(self.time, trigger)
        self.live += events
        return events

    def hit(self, function, task, second=1):
        self.time += 1_000_000
        self.sequence += 1
        trap = CodeHit(
            vcpu=0,
            asid=0,
            pc=synthetic.START_KERNEL_MAP + FUNCTIONS[function] + synthetic.SHIFT,
            sequence=self.sequence,
            time_ns=self.sequence * 1000,
            held=True,
            registers={"rdi": task, "rsi": second},
        )
        events = self.steps.trap(trap, self.time, 500)
        self.live += events
        return events

    def fork(self, pid, comm=b"sh", **values):
        task = self.guest.task(pid, comm, **values)
        self.forks += 1
        self.guest.counters(self.forks, self.forks, pid + 1)
        self.hit(FORK, task)
        return task

    def exec(self, task, comm, exe=None, args=()):
        guest = self.guest
        generation = int.from_bytes(guest.ram[guest.gpa(task) + 112 :][:8], "little") + 1
        guest.set(task, "task_struct", self_exec_id=generation, comm=comm.ljust(16, b"\0"))
        mm = int.from_bytes(guest.ram[guest.gpa(task) + 64 :][:8], "little")
        if exe:
            file, mount, root = self.file(exe)
            fs = guest.new("fs_struct")
            guest.put(fs + 8, "<Q", mount)
            guest.put(fs + 16, "<Q", root)
            guest.set(task, "task_struct", fs=fs)
            guest.set(mm, "mm_struct", exe_file=file)
        if args:
            pgd = int.from_bytes(guest.ram[guest.gpa(mm) + 16 :][:8], "little")
            raw = b"\0".join(args) + b"\0"
            guest.map_user(pgd, 0x7F0000000000, raw)
            guest.set(mm, "mm_struct", arg_start=0x7F0000000000, arg_end=0x7F0000000000 + len(raw))
        return self.hit(EXEC, task)

    def file(self, path):
        """(file, mount, root directory of the mount)."""
        guest = self.guest
        mount = guest.new("mount")
        guest.set(mount, "mount", mnt_parent=mount)
        root = guest.new("dentry")
        guest.set(root, "dentry", d_parent=root)
        dentry = root
        for name in path.strip("/").encode().split(b"/"):
            text = guest.allocate(64)
            guest.ram[guest.gpa(text) : guest.gpa(text) + len(name)] = name
            dentry = guest.new("dentry", d_parent=dentry)
            guest.put(dentry + 36, "<I", len(name))
            guest.put(dentry + 40, "<Q", text)
            guest.put(dentry + 8, "<Q", 1)
        file = guest.new("file")
        guest.put(file + 16, "<Q", mount + 16)
        guest.put(file + 24, "<Q", dentry)
        return file, mount + 16, root

    def end(self, task, code=0):
        guest = self.guest
        signal = int.from_bytes(guest.ram[guest.gpa(task) + 88 :][:8], "little")
        guest.set(task, "task_struct", exit_code=code, flags=synthetic.PF_EXITING, exit_state=0x20)
        guest.set(signal, "signal_struct", live=0)
        return self.hit(DEATH, task)

    def run(self, count, first=100):
        """``count`` processes that fork, exec and end: five events each."""
        for pid in range(first, first + count):
            task = self.fork(pid, b"sh", uid=pid % 3)
            self.exec(task, b"tool", f"/bin/tool{pid % 5}", (b"tool", b"%d" % pid))
            self.end(task, (pid % 4) << 8)
