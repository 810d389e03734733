"""What Linux's asids and system calls tell, from a guest in a bytearray."""

import json

import pytest

from live.core.errors import SymbolsMissing
from live.core.events import Identity
from live.core.traps import Abi, CallFlags
from live.linux.asids import CLONE_THREAD, CLONE_VM, MOST_NEW, LinuxAsids
from tests.hypervisors.fake import syscall
from tests.linux import synthetic
from tests.linux.synthetic import DIRECT, RAM, TYPES

CLONE, VFORK, CLONE3, READ = 56, 58, 435, 0
COMPAT_CLONE, COMPAT_VFORK = 120, 190
SIGCHLD = 17
THREAD = CLONE_VM | CLONE_THREAD
USER = 0x7F00_0000_1000
TASK_NEW = 0x800
LINKS = TYPES["task_struct"]["tasks"][0]
POISON = 0xDEAD_0000_0000_0122  # LIST_POISON2: `prev` of what has left the list
ENTRIES = {"entry_SYSCALL_64": 0x6000, "entry_INT80_compat": 0x6100}


class Guest(synthetic.SyntheticGuest):
    """Has symbols beside those of its data."""

    def __init__(self, tmp_path, symbols, drop=()):
        super().__init__(tmp_path, drop)
        document = json.loads(self.isf.read_text())
        document["symbols"].update({name: {"address": value} for name, value in symbols.items()})
        self.isf.write_text(json.dumps(document))

    def rules(self):
        return LinuxAsids(self.kernel())

    def call(self, number, *, abi=Abi.NATIVE, asid=0x1000, **registers):
        return syscall(1, number, abi=abi, asid=asid, **registers)


IMAGE = {name: synthetic.START_KERNEL_MAP + at for name, at in ENTRIES.items()}


@pytest.fixture
def guest(tmp_path):
    return Guest(tmp_path, {"current_task": 0x40, **IMAGE})


def test_the_words_that_count_tasks_and_the_asid_of_the_kernel(guest):
    rules = guest.rules()
    words = [(word.gpa, word.size) for word in rules.words]
    assert words == [
        (guest.gpa(guest.global_("total_forks")), 8),
        (guest.gpa(guest.global_("nr_threads")), 4),
    ]
    assert rules.kernel == {guest.dtb}


def test_the_calls_that_may_share_an_asid(guest):
    rules = guest.rules()
    assert (rules.syscalls, rules.compat_syscalls) == (
        {CLONE, VFORK, CLONE3},
        {COMPAT_CLONE, COMPAT_VFORK, CLONE3},
    )
    assert rules.call_flags == {
        CallFlags(number=CLONE, abi=Abi.NATIVE, bits=CLONE_VM),
        CallFlags(number=COMPAT_CLONE, abi=Abi.COMPAT, bits=CLONE_VM),
    }
    assert rules.waits == {61, 247}


@pytest.mark.parametrize("flags", [SIGCHLD, CLONE_VM, CLONE_VM | SIGCHLD, THREAD, CLONE_THREAD, 1 << 40])
def test_what_is_clone(guest, flags):
    rules = guest.rules()
    shares = flags in (CLONE_VM, CLONE_VM | SIGCHLD)
    assert rules.shares(guest.call(CLONE, rdi=flags, rbx=THREAD)) == shares
    assert rules.shares(guest.call(COMPAT_CLONE, abi=Abi.COMPAT, rbx=flags, rdi=THREAD)) == shares


def test_of_a_32_bit_program_half_a_register_counts(guest):
    call = guest.call(COMPAT_CLONE, abi=Abi.COMPAT, rbx=CLONE_VM | CLONE_THREAD << 32)
    assert guest.rules().shares(call)


def test_a_call_whose_registers_are_not_told_is_taken_for_fork(guest):
    assert not guest.rules().shares(guest.call(CLONE))


def test_what_is_vfork_and_what_is_not(guest):
    rules = guest.rules()
    assert rules.shares(guest.call(VFORK))
    assert rules.shares(guest.call(COMPAT_VFORK, abi=Abi.COMPAT))
    for number, abi in ((READ, 0), (VFORK, 1), (COMPAT_VFORK, 0), (COMPAT_CLONE, 0), (1 << 40, 0)):
        assert not rules.shares(guest.call(number, abi=Abi(abi), rdi=CLONE_VM, rbx=CLONE_VM))


@pytest.mark.parametrize("abi", Abi)
@pytest.mark.parametrize("flags", [0, CLONE_VM, THREAD, CLONE_VM | 1 << 33])
def test_what_is_clone3(guest, abi, flags):
    """Its flags are where it points, in the caller's address space."""
    guest.task(3)
    (task,) = guest.kernel().snapshot(0, "").tasks
    user = USER if abi is Abi.NATIVE else 0x1000
    guest.map_user(task.asid + DIRECT, user, b"\xff" * 8 + flags.to_bytes(8, "little"))
    register = {"rdi" if abi is Abi.NATIVE else "rbx": user + 8}
    call = guest.call(CLONE3, abi=abi, asid=task.asid, **register)
    assert guest.rules().shares(call) == (flags & THREAD == CLONE_VM)


@pytest.mark.parametrize("pointer", [0, USER - 8, USER + 4092, 1 << 63, (1 << 64) - 4])
@pytest.mark.parametrize("asid", [None, RAM, 0xFFFF_FFFF_F000])
def test_what_cannot_be_read_may_share_an_asid(guest, pointer, asid):
    guest.task(3)
    (task,) = guest.kernel().snapshot(0, "").tasks
    guest.map_user(task.asid + DIRECT, USER, bytes(4096))
    rules = guest.rules()
    assert not rules.shares(guest.call(CLONE3, asid=task.asid, rdi=USER))
    assert rules.shares(guest.call(CLONE3, asid=task.asid if asid is None else asid, rdi=pointer))


# -- who makes a call


def on_a_cpu(guest, current):
    base = guest.allocate(256)
    guest.put(base + 0x40, "<Q", current)
    return base


def test_the_caller_is_the_current_task(guest):
    task = guest.task(3)
    base = on_a_cpu(guest, task)
    assert guest.rules().caller(guest.call(READ, k_gs_base=base, gs_base=0x1234)) == task


@pytest.mark.parametrize("base", [{}, {"k_gs_base": 1 << 63}, {"k_gs_base": DIRECT + RAM}])
def test_a_caller_that_cannot_be_read_is_not_known(guest, base):
    assert guest.rules().caller(guest.call(READ, **base)) == 0


def test_a_kernel_that_hides_its_current_task_is_watched_all_the_same(tmp_path):
    guest = Guest(tmp_path, {})
    task = guest.task(3)
    rules = guest.rules()
    assert rules.caller(guest.call(READ, k_gs_base=on_a_cpu(guest, task))) == 0
    assert rules.task(task).identity == Identity(3, 3000)


def test_a_thread_stands_for_its_leader(guest):
    leader = guest.task(3)
    thread = guest.new("task_struct", pid=4, tgid=3, group_leader=leader)
    rules = guest.rules()
    assert rules.task(thread) == rules.task(leader)
    assert (rules.task(leader).address, rules.task(leader).identity.pid) == (leader, 3)


@pytest.mark.parametrize("address", [0, 1 << 63, DIRECT + RAM, DIRECT + RAM - 8, (1 << 64) - 1])
def test_a_task_that_cannot_be_read_is_none(guest, address):
    assert guest.rules().task(address) is None


# -- the end of the list


def known_of(guest, rules):
    """What is known by now."""
    return {task.address: task.identity for task in guest.kernel().snapshot(0, "").tasks}.get


def pids(tasks):
    return None if tasks is None else [task.identity.pid for task in tasks]


def test_the_newest_tasks_are_those_behind_the_last_that_is_known(guest):
    for pid in (1, 2, 3):
        guest.task(pid)
    rules = guest.rules()
    known = known_of(guest, rules)
    assert pids(rules.newest(known)) == []
    for pid in (4, 5):
        guest.task(pid)
    assert pids(rules.newest(known)) == [4, 5]
    assert pids(rules.newest({}.get)) == [1, 2, 3, 4, 5]


def test_a_place_that_another_task_has_now_is_not_known(guest):
    guest.task(1)
    last = guest.task(2)
    known = known_of(guest, guest.rules())
    guest.set(last, "task_struct", tgid=7, pid=7, start_boottime=5)
    assert pids(guest.rules().newest(known)) == [7]


@pytest.mark.parametrize("more", [0, 1])
def test_of_many_new_tasks_the_whole_list_is_read(guest, more):
    guest.task(1)
    known = known_of(guest, guest.rules())
    for pid in range(2, 2 + MOST_NEW + more):
        guest.task(pid)
    newest = guest.rules().newest(known)
    assert pids(newest) == (None if more else list(range(2, 2 + MOST_NEW)))


@pytest.mark.parametrize("link", [0, POISON, DIRECT + RAM, (1 << 64) - 1], ids=hex)
def test_a_list_that_leads_nowhere_is_read_as_a_whole(guest, link):
    guest.task(1)
    last = guest.task(2)
    guest.put(last + LINKS + 8, "<Q", link)
    assert guest.rules().newest({}.get) is None
    guest.put(guest.init_task + LINKS + 8, "<Q", link)
    assert guest.rules().newest({}.get) is None


@pytest.mark.parametrize("member", ["signal", "real_cred", "mm"])
def test_a_new_task_that_is_gone_has_the_whole_list_read(guest, member):
    guest.task(1)
    known = known_of(guest, guest.rules())
    guest.task(2, **{member: 0x4141_4141_4141_4141})
    assert guest.rules().newest(known) is None


@pytest.mark.parametrize("to", [1, 2])
def test_a_list_that_bites_its_tail_is_read_as_a_whole(guest, to):
    """`prev` of the first leads to itself, or to the other one."""
    tasks = {pid: guest.task(pid) for pid in (1, 2)}
    guest.put(tasks[1] + LINKS + 8, "<Q", tasks[to] + LINKS)
    assert guest.rules().newest({}.get) is None


# -- words and states of a task


def task_of(guest, pid=3):
    return next(task for task in guest.kernel().snapshot(0, "").tasks if task.identity.pid == pid)


def test_the_mark_of_a_process_is_its_exit_state(guest):
    address = guest.task(3)
    (word,) = guest.rules().marks(task_of(guest))
    assert (word.gpa, word.size) == (guest.gpa(address) + TYPES["task_struct"]["exit_state"][0], 4)


def test_the_mark_of_a_leader_that_has_left_is_the_number_of_its_threads(guest):
    address = guest.task(3, threads=2, exit_state=0x20, mm=0, flags=4)
    task = task_of(guest)
    assert (task.dead, task.kernel, task.asid) == (False, False, 0)
    (word,) = guest.rules().marks(task)
    signal = guest.kernel().task(address).signal
    assert (word.gpa, word.size) == (guest.gpa(signal) + TYPES["signal_struct"]["live"][0], 4)
    assert int.from_bytes(guest.ram[word.gpa : word.gpa + 4], "little") == 2


@pytest.mark.parametrize("exit_state", [0, 0x20])
def test_a_task_that_is_nowhere_has_no_mark(guest, exit_state):
    guest.task(3)
    task = task_of(guest)._replace(exit_state=exit_state, address=1 << 63)
    assert guest.rules().marks(task) == ()


def test_a_leader_whose_signal_struct_is_nowhere_has_no_mark(guest):
    address = guest.task(3, exit_state=0x20)
    task = task_of(guest)
    guest.set(address, "task_struct", signal=0x4141_4141_4141_4141)
    assert guest.rules().marks(task) == ()


@pytest.mark.parametrize(("state", "unfinished"), [(TASK_NEW, True), (0, False), (1, False)])
def test_a_task_is_not_complete_before_it_is_woken(guest, state, unfinished):
    guest.task(3, __state=state)
    rules = guest.rules()
    assert rules.unfinished(task_of(guest)) == unfinished
    assert not rules.unfinished(task_of(guest)._replace(address=1 << 63))


# -- entries


def test_entries(guest):
    shifted = {name: value + synthetic.SHIFT for name, value in IMAGE.items()}
    assert guest.rules().entries == {
        (shifted["entry_SYSCALL_64"], Abi.NATIVE),
        (shifted["entry_INT80_compat"], Abi.COMPAT),
    }


def test_without_the_native_entry_there_are_none(tmp_path):
    symbols = {"entry_INT80_compat": IMAGE["entry_INT80_compat"]}
    assert Guest(tmp_path, symbols).rules().entries == frozenset()


def test_a_kernel_that_lacks_a_member_says_so(tmp_path):
    guest = Guest(tmp_path, {}, drop={"task_struct.__state"})
    with pytest.raises(SymbolsMissing, match="struct task_struct has no member __state"):
        guest.system().asids()
