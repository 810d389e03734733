"""Properties of asid mode, over histories that a kernel allows, and over anything at all."""

from hypothesis import given, settings
from hypothesis import strategies as st

from live.core.asids import AsidMode, Standing
from tests.core.asid_guest import KERNEL, READ, VFORK, Guest, child_of, corpse, image, process

ASIDS = [KERNEL, *(pid << 13 for pid in range(1, 5)), 0x3000, 0x9000]


def check(guest):
    """What is settled is the kernel's, nobody's, or a task's that is complete."""
    watch, request = guest.watch, guest.stepper.request
    ours = request.settled - guest.kernel
    assert not ours & request.pending
    for asid in ours:
        if watch._standings[asid] is Standing.FOREIGN:
            assert not watch._owners.get(asid)
            continue
        owners = [watch._tasks[at] for at in watch._owners[asid]]
        assert not any(one.transient and not one.dead for one in owners), hex(asid)


_TASKS = st.builds(
    process,
    st.integers(1, 4),
    start=st.integers(1, 2),
    ppid=st.integers(0, 4),
    address=st.integers(1, 5).map(lambda slot: 0xFFFF_8880_0000_0000 + slot * 0x4000),
    parent=st.integers(0, 5).map(lambda slot: 0xFFFF_8880_0000_0000 + slot * 0x4000),
    generation=st.integers(0, 2),
    asid=st.sampled_from([0, *ASIDS]),
    exit_state=st.sampled_from([0, 0x20]),
    **dict.fromkeys(("fresh", "dead", "transient", "kernel"), st.booleans()),
)
_STEPS = st.one_of(
    st.tuples(st.just("put"), _TASKS),
    st.tuples(st.just("drop"), st.integers(0, 4)),
    st.tuples(st.just("torn"), st.booleans()),
    st.tuples(st.just("unfinished"), st.integers(0, 4)),
    st.tuples(st.just("change"), st.sampled_from(ASIDS)),
    st.tuples(st.just("call"), st.integers(0, 4), st.sampled_from([READ, VFORK]), st.booleans()),
    st.tuples(st.just("stray"), st.sampled_from(ASIDS), st.integers(0, 4), st.booleans()),
    st.tuples(st.just("look")),
    st.tuples(st.just("fence")),
)


def chosen(guest, number):
    listed = list(guest.tasks.values())
    return listed[number % len(listed)] if listed else None


def anything(guest, kind, *values):
    """One step, whether a kernel would do so or not."""
    if kind == "put":
        guest.put(values[0])
    elif kind == "torn":
        guest.torn = values[0]
    elif kind == "change":
        guest.change(values[0])
    elif kind == "look":
        guest.look()
    elif kind == "fence":
        guest.stepper.fence()
    elif kind == "stray":
        guest.call(chosen(guest, values[1]) or process(9), asid=values[0], known=values[2])
    elif (one := chosen(guest, values[0])) is not None:
        if kind == "drop":
            guest.drop(one)
        elif kind == "unfinished":
            guest.unfinished_at ^= {one.address}
        else:
            guest.call(one, values[1], known=values[2])


@settings(max_examples=300, deadline=None)
@given(st.lists(_STEPS, max_size=50), st.sampled_from(AsidMode), st.booleans())
def test_nothing_is_settled_that_is_not_complete(steps, mode, tells):
    guest = Guest(process(1), mode=mode, tells_words=tells)
    for step in steps:
        anything(guest, *step)
        check(guest)


class Life:
    """A guest with one vCPU, whose kernel keeps its rules; and the events that have to come of what it does.

    A task runs in the asid that the vCPU has changed to, and an image makes a call before anything else.
    Page tables and tasks are used again as soon as that can be.
    """

    def __init__(self, tells, known, step):
        """``known``: it can be told who makes a call; ``step``: from one root to the next."""
        init = process(1, asid=0x10_0000 - step)
        self.guest, self.known = Guest(init, tells_words=tells), known
        self.roots = {1: init.asid}
        self.pool = [0x10_0000 + number * step for number in range(6)]
        self.haunted, self.blocked = set(), {}
        self.clock = 0
        self.seen, self.done = list(self.guest.attached), list(self.guest.attached)

    def task(self, pid):
        return next(one for one in self.guest.tasks.values() if one.identity.pid == pid)

    def free(self):
        return [root for root in self.pool if root not in self.roots.values() and root not in self.haunted]

    def take(self, events):
        self.seen += events or []
        check(self.guest)

    def switch(self, root):
        self.take(self.guest.change(root))

    def call(self, pid, number=READ):
        """Its vCPU changes to it, and it makes a call."""
        self.switch(self.roots[pid])
        self.take(self.guest.call(self.task(pid), number, asid=self.roots[pid], known=self.known))

    # -- what may happen; each to a process that can run

    def fork(self, pid, root, looks):
        self.call(pid)
        self._born(pid, root, looks)

    def vfork(self, pid, root, looks):
        self.call(pid, VFORK)
        self.blocked[pid] = self._born(pid, self.roots[pid], looks)

    def _born(self, pid, root, looks):
        parent = self.task(pid)
        new = next(
            new for new in range(2, 99) if all(one.identity.pid != new for one in self.guest.tasks.values())
        )
        self.clock += 1
        child = self.guest.put(child_of(parent, new, start=self.clock, asid=root))
        if looks:
            self.guest.unfinished_at.add(child.address)
            self.take(self.guest.look())
            self.guest.unfinished_at.clear()
        self.roots[new] = root
        self.done.append(("start", new, "fork", child.comm.decode()))
        self.call(new)
        self.haunted.clear()
        return new

    def exec(self, pid, root, looks):
        old = self._begins(pid, looks)
        self.clock += 1
        new = image(old, b"i%d" % self.clock, asid=root, transient=looks)
        if old.exit_state:  # another thread takes its leader's place
            new = new._replace(address=old.address + 0x100, exit_state=0)
        self.guest.put(new)
        if looks:
            self.take(self.guest.look())
        self.switch(root)
        self.roots[pid] = root
        self.call(pid)
        self.guest.put(new._replace(transient=False))
        self._released(pid)
        self.done += [
            ("end", pid, "exec"),
            ("exec", pid, old.comm.decode(), new.comm.decode()),
            ("start", pid, "exec", new.comm.decode()),
        ]

    def fail(self, pid, root, looks):
        old = self._begins(pid, looks)
        self.guest.put(old)
        self.call(pid)

    def _begins(self, pid, looks):
        self.call(pid)
        old = self.task(pid)
        if looks:
            self.guest.put(old._replace(transient=True))
            self.take(self.guest.look())
        return old

    def exit(self, pid, root, looks):
        if pid == 1:
            return
        old = self._begins(pid, looks)
        self.guest.put(corpse(old)._replace(transient=looks))
        del self.roots[pid]
        self._released(pid)
        self.done.append(("end", pid, "exit"))
        self.call(next(iter(self.ready())))
        self.haunted.clear()

    def leave(self, pid, root, looks):
        """The leader exits, and its threads go on."""
        if pid == 1:
            return
        self.call(pid)
        self.guest.replace(self.task(pid), asid=0, mm=0, exit_state=0x20)
        self.call(pid)

    def reap(self, pid, root, looks):
        self.call(pid)
        for one in [one for one in self.guest.tasks.values() if one.dead][:1]:
            self.guest.drop(one)

    def haunt(self, pid, root, looks):
        """The kernel uses a table of its own."""
        if root in self.pool:
            for _ in range(5):
                self.switch(root)
                self.switch(KERNEL)
            self.haunted.add(root)

    def look(self, pid, root, looks):
        self.take(self.guest.look())

    def _released(self, pid):
        self.blocked = {parent: child for parent, child in self.blocked.items() if child != pid}

    def ready(self):
        return [pid for pid in self.roots if pid not in self.blocked]

    def step(self, kind, who, which, looks):
        ready, free = self.ready(), self.free()
        if ready and free:
            getattr(self, kind)(ready[who % len(ready)], free[which % len(free)], looks)


_KINDS = ["fork", "vfork", "exec", "fail", "exit", "leave", "reap", "haunt", "look"]
_HAPPENS = st.tuples(st.sampled_from(_KINDS), st.integers(0, 5), st.integers(0, 5), st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(_HAPPENS, max_size=40), st.booleans(), st.booleans(), st.sampled_from([0x1000, 0x2000]))
def test_nothing_that_happens_is_missed(steps, tells, known, step):
    life = Life(tells, known, step)
    for one in steps:
        life.step(*one)
    for pid in {event[1] for event in life.done}:
        assert [one for one in life.seen if one[1] == pid] == [one for one in life.done if one[1] == pid]
    assert len(life.seen) == len(life.done)
    counts = life.guest.stepper.counts
    assert (counts.missed, counts.unexpected, counts.late, counts.premature) == (0, 0, 0, 0)
    assert {one.pid for one in life.guest.stepper.tracker.live()} == life.roots.keys()
