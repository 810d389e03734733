"""A guest of plain values that is watched by its asids: its task list, its words, and what its vCPU does.

It is a `live.core.system.OperatingSystem` and its `live.core.system.AsidRules`.  A vCPU is trapped where the
watch asks for it, and not otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from live.arch.x86_64 import X86_64
from live.core.asids import AsidMode
from live.core.memory import Asid, GuestPhysical
from live.core.traps import Abi, Action, CallFlags, Word
from live.watch.asid_stepper import AsidStepper
from tests.core.build import describe, short, snapshot, task
from tests.hypervisors.fake import asid_change, syscall
from tests.hypervisors.wanted import action_of

KERNEL, FORKS, THREADS = Asid(0x4000_0000), 0x100, 0x108
VFORK, READ = 58, 0
DIRECT = 0xFFFF_8880_0000_0000
NOT_TRAPPED = None


class Guest:
    """``tasks``: its list, by address.  ``reads``: what was read of it since somebody looked."""

    name = "plain"
    kernel = frozenset({KERNEL})
    words = (Word(gpa=GuestPhysical(FORKS)), Word(gpa=GuestPhysical(THREADS), size=4))
    syscalls, compat_syscalls = frozenset({VFORK}), frozenset({190})
    call_flags = frozenset({CallFlags(number=56, abi=Abi.NATIVE, bits=0x100)})
    entries, waits = frozenset({(0xE000, Abi.NATIVE)}), frozenset({61})

    def __init__(self, *running, mode=AsidMode.ASID, tells_words=True):
        """Attached to while ``running`` are on the list; ``tells_words``: which one has moved."""
        self.tasks = {one.address: one for one in running}
        self.forks, self.torn, self.tells_words = 0, False, tells_words
        self.unfinished_at, self.moved, self.reads = set(), set(), []
        self._sequence, self._runs = 0, KERNEL
        self.stepper = AsidStepper(self, X86_64, mode)
        self.watch = self.stepper._watch
        self.first = self.stepper.request
        self.attached = self.look()
        self.reads.clear()

    # -- what the watch reads

    def asids(self):
        return self

    def uptime(self):
        return None

    def snapshot(self, time_ns, trigger):
        self.reads.append("list")
        said = {"time_ns": time_ns, "trigger": trigger}
        return snapshot(*self.tasks.values(), forks=self.forks, torn=self.torn, **said)

    def describe(self, found, *, standing=False):
        return describe(found)

    def revisit(self, found):
        return None

    def marks(self, found):
        """A word of the task; of a leader that has exited, another one."""
        return (Word(gpa=mark_of(found), size=4),)

    def unfinished(self, found):
        return found.address in self.unfinished_at

    def shares(self, call):
        return call.number == VFORK

    def caller(self, call):
        return call.registers.get("current", 0)

    def task(self, address):
        self.reads.append(address)
        return self.tasks.get(address)

    def newest(self, known):
        self.reads.append("newest")
        found = []
        for one in reversed(self.tasks.values()):
            if known(one.address) == one.identity:
                break
            found.append(one)
        return found[::-1]

    # -- what its kernel does

    def put(self, new):
        """A task as it is from now on; in the order of the list."""
        old = self.tasks.get(new.address)
        leader = next((at for at, one in self.tasks.items() if one.identity == new.identity), new.address)
        if leader != new.address:  # an exec by another thread takes its leader's place
            self.tasks = {new.address if at == leader else at: one for at, one in self.tasks.items()}
            self.moved.add(THREADS)
        elif old is None or old.identity != new.identity:
            self.tasks.pop(new.address, None)
            self.forks += 1
            self.moved |= {FORKS, THREADS}
        elif (old.exit_state, old.dead) != (new.exit_state, new.dead):
            self.moved.add(mark_of(old))
        self.tasks[new.address] = new
        return new

    def replace(self, old, **changes):
        return self.put(old._replace(**changes))

    def drop(self, old):
        del self.tasks[old.address]
        self.moved.add(THREADS)

    # -- what its vCPU does

    def look(self, trigger="timer"):
        return [short(event) for event in self.stepper.snapshot(0, trigger)]

    def change(self, to):
        """To the asid of a task, or to an asid; the events, or `NOT_TRAPPED`."""
        new = self.asid(getattr(to, "asid", to))
        compared = {word.gpa for word in self.stepper.request.words}
        moved, self.moved = self.moved & compared, set()
        told = sorted(moved) if self.tells_words else ()
        trap = replace(asid_change(self._next(), new, words=told, asid=self._runs), moved=bool(moved))
        self._runs = new
        return self._trap(trap)

    def call(self, by, number=READ, *, asid=None, known=True):
        """A task makes a system call, in its own asid if no other is given."""
        where = self.asid(by.asid if asid is None else asid)
        current = by.address if known else 0
        return self._trap(syscall(self._next(), number, asid=where, current=current))

    def runs(self, by, number=READ, *, known=True):
        """A vCPU changes to a task's asid, and the task makes a call; all events."""
        events = self.change(by) or []
        return events + (self.call(by, number, known=known) or [])

    def asid(self, root):
        return X86_64.asid_of(root, split=self.stepper.request.split_asids)

    def _next(self):
        self._sequence += 1
        return self._sequence

    def _trap(self, trap):
        if action_of(self.stepper.request, trap, X86_64) is Action.OFF:
            return NOT_TRAPPED
        return [short(event) for event in self.stepper.trap(trap, trap.time_ns, 0)]

    # -- what the watch knows

    def settled(self, of):
        """Whether an asid, or that of a task, is not trapped."""
        asid = self.asid(getattr(of, "asid", of))
        return asid in self.stepper.request.settled


def mark_of(found):
    return GuestPhysical(found.address - DIRECT + (0x2000 if found.exit_state else 0))


def process(pid, **changes):
    """A task; ``asid`` is its page table's."""
    return task(pid, **{"generation": 1, "comm": b"c%d" % pid, **changes})


def child_of(parent, pid, **changes):
    """What fork() makes of it."""
    own = {"ppid": parent.identity.pid, "parent": parent.address, "comm": parent.comm}
    return process(pid, **{**own, "generation": parent.generation, "fresh": True, **changes})


def image(old, comm=b"new", **changes):
    """What execve() makes of a task: another page table, and another image."""
    asid = (old.identity.pid << 13) + (old.generation + 1 << 24)
    own = {"asid": asid, "mm": asid, "generation": old.generation + 1, "comm": comm, "fresh": False}
    return old._replace(**{**own, "transient": False, **changes})


def corpse(old, code=0):
    return old._replace(dead=True, exit_state=0x20, exit_code=code, asid=0, mm=0, threads=0)
