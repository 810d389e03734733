"""The moments of a process by the words that kernel functions read: where, whose, and whether it counts."""

import json
import struct

import pytest

from live.arch.x86_64 import X86_64
from live.core.snapshot import Moment
from live.core.traps import Access, CodeHit, TrapRequest
from live.linux.kernel import PF_EXITING, SIGNAL_GROUP_EXIT
from live.linux.points import LifecyclePoints
from tests.hypervisors.fake import access, code_hit
from tests.linux import synthetic

FUNCTIONS = {
    "wake_up_new_task": 0x2000,
    "proc_fork_connector": 0x2100,
    "proc_exec_connector": 0x2200,
    "taskstats_exit": 0x2400,
    "perf_event_fork": 0x2600,
    "perf_event_namespaces": 0x2700,
}
WORDS = {"nr_namespaces_events": 0x3000, "proc_event_num_listeners": 0x3010, "family_registered": 0x3020}
PERCPU = {"current_task": 0x40}
TASK_NEW = 0x800
READS = {
    "proc_fork_connector": ("proc_event_num_listeners", b"\x8b\x05", b""),
    "proc_exec_connector": ("proc_event_num_listeners", b"\x8b\x0d", b""),
    "taskstats_exit": ("family_registered", b"\x44\x8b\x05", b""),
    "perf_event_fork": ("nr_namespaces_events", b"\x83\x3d", b"\0"),
    "perf_event_namespaces": ("nr_namespaces_events", b"\x8b\x05", b""),
}
"""Function -> what it reads, the instruction up to its displacement, and what follows that."""
INTO = 0x30
BASE = synthetic.START_KERNEL_MAP + synthetic.SHIFT


class Guest(synthetic.SyntheticGuest):
    """Has the functions, and one vCPU that runs ``current``."""

    def __init__(self, tmp_path, without=(), symbols=PERCPU):
        super().__init__(tmp_path)
        document = json.loads(self.isf.read_text())
        names = {**FUNCTIONS, **WORDS}
        for name, at in names.items():
            if name not in without:
                document["symbols"][name] = {"address": synthetic.START_KERNEL_MAP + at}
        for name, at in symbols.items():
            document["symbols"][name] = {"address": at}
        self.isf.write_text(json.dumps(document))
        self.behind = {}
        for name, (word, opcode, immediate) in READS.items():
            at = FUNCTIONS[name] + INTO
            end = at + len(opcode) + 4 + len(immediate)
            code = opcode + struct.pack("<i", WORDS[word] - end) + immediate
            start = self.gpa(BASE + at)
            self.ram[start : start + len(code)] = code
            self.behind[name] = BASE + end
        self.gs_base = self.allocate(256)
        self.percpu = next(iter(symbols.values()), 0)

    def points(self):
        return LifecyclePoints(self.kernel())

    def hit(self, function, current=0, **registers):
        if current:
            self.put(self.gs_base + 0x40, "<Q", current)
        word = BASE + WORDS[READS[function][0]]
        return access(1, self.behind[function], word, gs_base=self.gs_base, **registers)


def at_exit(task):
    return code_hit(1, BASE + FUNCTIONS["taskstats_exit"], rdi=task, rsi=1)


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path)


def test_the_words_and_the_places_behind_the_reads(guest):
    found = {one.word - BASE: one for one in guest.points().watchpoints}
    assert sorted(found) == sorted(WORDS.values())
    perf = found[WORDS["nr_namespaces_events"]]
    assert perf.behind == {guest.behind["perf_event_fork"]}
    assert perf.others == {guest.behind["perf_event_namespaces"]}
    connector = found[WORDS["proc_event_num_listeners"]]
    assert connector.behind == {guest.behind["proc_exec_connector"]}
    assert connector.others == {guest.behind["proc_fork_connector"]}


def test_a_source_gets_what_it_prefers(guest):
    points = guest.points()
    assert points.ways == {CodeHit, Access}
    assert points.request(Access) == TrapRequest(accesses=points.watchpoints)
    request = points.request(CodeHit)
    assert request == points.request()
    assert (request.code, request.accesses) == (points.addresses, frozenset())


@pytest.mark.parametrize("missing", ["nr_namespaces_events", "perf_event_fork", "family_registered"])
def test_a_kernel_without_one_of_them_is_trapped_by_code(tmp_path, missing):
    points = Guest(tmp_path, without=(missing,)).points()
    assert points.ways == {CodeHit}
    assert points.request(Access) == points.request(CodeHit)
    assert points.request(Access).code == points.addresses


def test_a_function_that_does_not_read_its_word_soon_is_trapped_by_code(guest):
    start = guest.gpa(BASE + FUNCTIONS["proc_exec_connector"])
    guest.ram[start : start + 0x100] = b"\x90" * 0x100
    assert guest.points().ways == {CodeHit}


def test_a_kernel_that_hides_its_current_task_is_trapped_by_code(tmp_path):
    assert Guest(tmp_path, symbols={}).points().ways == {CodeHit}


@pytest.mark.parametrize("register", ["rdi", "rbx", "rbp", "r15"])
def test_fork_is_of_the_task_that_never_ran_in_whatever_register(guest, register):
    parent = guest.task(7)
    child = guest.task(8, parent=parent, __state=TASK_NEW)
    others = {name: parent for name in ("rdi", "rbx", "rbp", "r15")}
    reached = guest.points().reached(guest.hit("perf_event_fork", **{**others, register: child}))
    assert (reached.function, reached.created) == ("perf_event_fork", (8, 8000))
    assert (reached.happening.moment, reached.happening.task.identity) == (Moment.FORK, (8, 8000))


def test_a_new_thread_is_counted_only(guest):
    leader = guest.task(7, threads=2)
    thread = guest.new("task_struct", pid=9, tgid=7, start_boottime=5, group_leader=leader, __state=TASK_NEW)
    reached = guest.points().reached(guest.hit("perf_event_fork", rbx=thread))
    assert (reached.happening, reached.created) == (None, (9, 5))


def test_no_register_with_a_new_task_is_nothing_readable(guest):
    running = guest.task(7)
    end = synthetic.DIRECT + synthetic.RAM
    hit = guest.hit("perf_event_fork", rdi=running, rbx=running + 1, rbp=end - 8, r12=end, r13=0, r14=1 << 63)
    assert guest.points().reached(hit) is None


def test_exec_is_of_the_current_task(guest):
    task = guest.task(7, b"new", in_execve=1)
    reached = guest.points().reached(guest.hit("proc_exec_connector", task))
    assert (reached.function, reached.happening.moment) == ("proc_exec_connector", Moment.EXEC)
    assert (reached.happening.task.comm, reached.happening.task.transient) == (b"new", False)


def test_the_current_task_where_per_cpu_symbols_are_addresses(tmp_path):
    guest = Guest(tmp_path, symbols={"current_task": synthetic.START_KERNEL_MAP + 0x40})
    guest.put(guest.gs_base + 0x40, "<Q", guest.task(7))
    hit = guest.hit("proc_exec_connector")
    registers = {"gs_base": (guest.gs_base - BASE) % (1 << 64)}
    hit = access(1, hit.pc, hit.address, **registers)
    assert guest.points().reached(hit).happening.task.identity == (7, 7000)


def test_death_is_of_the_group_that_has_no_thread_left(guest):
    points = guest.points()
    task = guest.task(7, threads=2, flags=PF_EXITING)
    signal = guest.kernel().task(task)[11]
    assert points.reached(guest.hit("taskstats_exit", task)) == ("taskstats_exit", None, None)
    guest.set(signal, "signal_struct", live=0)
    guest.set(task, "task_struct", exit_code=3 << 8)
    happening = points.reached(guest.hit("taskstats_exit", task)).happening
    assert (happening.moment, happening.task.dead, happening.task.exit_code) == (Moment.DEATH, True, 3 << 8)


@pytest.mark.parametrize("of", ["the task", "its leader"])
def test_memory_that_another_task_has_by_now_tells_no_death(guest, of):
    """Behind a fence the guest runs on, and a fork that was under way may take the memory of a dead task."""
    leader, thread, _ = a_group_of_two(guest)
    dead = at_exit(thread)
    assert guest.points().reached(dead).happening.moment is Moment.DEATH
    guest.set(thread if of == "the task" else leader, "task_struct", flags=0)
    assert guest.points().reached(dead) is None


@pytest.mark.parametrize(("flags", "told"), [(PF_EXITING, True), (0, False)])
def test_a_death_outlives_its_mm(guest, flags, told):
    task = guest.task(7, b"old", flags=flags, exit_code=9, mm=synthetic.DIRECT + synthetic.RAM)
    reached = guest.points().reached(at_exit(task))
    assert (reached is not None) == told
    if told:
        task = reached.happening.task
        assert (task.identity, task.comm, task.exit_code) == ((7, 7000), b"old", 9)
        assert (task.asid, task.kernel) == (0, False)


def a_group_of_two(guest):
    leader = guest.task(7, threads=2, flags=PF_EXITING)
    signal = guest.kernel().task(leader)[11]
    thread = guest.new(
        "task_struct",
        flags=PF_EXITING,
        pid=9,
        tgid=7,
        start_boottime=5,
        group_leader=leader,
        signal=signal,
        real_parent=guest.init_task,
        real_cred=guest.new("cred"),
        mm=guest.kernel().task(leader)[9],
    )
    return leader, thread, signal


def test_a_thread_leaves_the_death_to_a_leader_whose_code_is_not_final(guest):
    """Both find 0 in `live`; the leader has still to come to where its code is set."""
    points = guest.points()
    leader, thread, signal = a_group_of_two(guest)
    guest.set(signal, "signal_struct", live=0)
    assert points.reached(guest.hit("taskstats_exit", thread)).happening is None
    guest.set(leader, "task_struct", exit_code=7 << 8)
    assert points.reached(guest.hit("taskstats_exit", leader)).happening.task.exit_code == 7 << 8


@pytest.mark.parametrize("how", ["it was seen", "its mm is gone", "the group has a code"])
def test_a_thread_that_is_last_tells_the_death(guest, how):
    points = guest.points()
    leader, thread, signal = a_group_of_two(guest)
    guest.set(leader, "task_struct", exit_code=7 << 8)
    if how == "it was seen":
        guest.set(signal, "signal_struct", live=1)
        assert points.reached(guest.hit("taskstats_exit", leader)).happening is None
    elif how == "its mm is gone":
        guest.set(leader, "task_struct", mm=0)
    else:
        guest.set(signal, "signal_struct", flags=SIGNAL_GROUP_EXIT, group_exit_code=7 << 8)
    guest.set(signal, "signal_struct", live=0)
    happening = points.reached(guest.hit("taskstats_exit", thread)).happening
    assert (happening.task.identity, happening.task.exit_code) == ((7, 7000), 7 << 8)


def test_what_else_reads_the_words_means_nothing(guest):
    points, task = guest.points(), guest.task(7)
    assert points.reached(guest.hit("proc_fork_connector", task, rdi=task)) is None
    assert points.reached(access(1, BASE + 0x1000, BASE + WORDS["family_registered"])) is None
    assert points.reached(code_hit(1, BASE + 0x1000, rdi=task, rsi=1)) is None


@pytest.mark.parametrize(
    ("code", "behind"),
    [
        (b"\x8b\x05", b""),
        (b"\x44\x8b\x15", b""),
        (b"\x80\x3d", b"\x00"),
        (b"\x66\x83\x3d", b"\x00"),
        (b"\x83\x3d", b"\x00"),
        (b"\xf0\x81\x05", b"\x00\x01\x00\x00"),
        (b"\x66\xc7\x05", b"\x00\x01"),
    ],
    ids=["mov", "mov r10d", "cmpb", "cmpw", "cmpl", "lock addl", "movw"],
)
@pytest.mark.parametrize("word", [0xFFFF_FFFF_8200_0000, 0xFFFF_FFFF_8000_0000])
def test_an_operand_is_found_wherever_it_points(code, behind, word):
    address, before = 0xFFFF_FFFF_8100_0000, b"\x53\x48\x83\xec\x48"
    end = address + len(before) + len(code) + 4 + len(behind)
    whole = before + code + struct.pack("<i", word - end) + behind + b"\x85\xc0"
    assert X86_64.behind_accesses(whole, address, word) == {end}
    assert X86_64.behind_accesses(whole, address, word + 4) == set()
    assert X86_64.behind_accesses(whole[: len(before) + len(code) + 3], address, word) == set()


def test_the_same_bytes_that_are_no_operand_are_none():
    address, word = 0x1000, 0x2000
    code = b"\xb8" + struct.pack("<i", word - address - 5)  # mov $imm32, %eax
    assert X86_64.behind_accesses(code, address, word) == set()
    assert X86_64.behind_accesses(b"", address, word) == set()
