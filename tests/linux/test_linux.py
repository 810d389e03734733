import pytest

from live.arch.x86_64 import X86_64
from live.core.errors import MemoryFault, SymbolsMissing
from live.core.events import ExitStatus, Identity
from live.linux.details import ProcessReader
from live.linux.freed import FreedTasks
from live.linux.kernel import SIGNAL_GROUP_EXIT
from live.linux.layout import SymbolTable, field
from live.linux.system import LINUX
from tests.linux.synthetic import DIRECT, RAM, TYPES, SyntheticGuest


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def guest(request, tmp_path):
    return SyntheticGuest(tmp_path, mapped=request.param)


def test_a_look_lists_every_leader_with_its_parent(guest):
    init = guest.task(1, b"init")
    guest.task(2, b"kthreadd", kernel=True)
    guest.task(7, b"sh", parent=init, uid=1000)
    guest.counters(7, 3, 8)
    look = guest.kernel().snapshot(5, "timer")
    assert [(t.identity, t.ppid, t.comm, t.uid, t.kernel, t.dead) for t in look.tasks] == [
        (Identity(1, 1000), 0, b"init", 0, False, False),
        (Identity(2, 2000), 0, b"kthreadd", 0, True, False),
        (Identity(7, 7000), 1, b"sh", 1000, False, False),
    ]
    assert (look.counters, look.torn, look.time_ns, look.trigger) == ((7, 3, 8), False, 5, "timer")
    assert look.tids == {(1, 1000), (2, 2000), (7, 7000)}


def test_the_asid_is_the_page_table_at_any_page(guest):
    """Seen on 7.2 without PTI: bit 12 was masked, and every second process had no argv and a wrong asid."""
    guest.task(1)
    (task,) = guest.kernel().snapshot(0, "").tasks
    assert task.asid % 0x2000 == 0x1000
    assert 0 < task.asid < RAM


def test_threads_are_counted_by_tid(guest):
    guest.task(4, threads=3)
    look = guest.kernel().snapshot(0, "")
    assert look.tids == {(4, 4000), (10004, 1), (20004, 2)}
    assert [t.threads for t in look.tasks] == [3]


@pytest.mark.parametrize(
    ("flags", "group_code", "own_code", "status"),
    [
        (0, 9, 3 << 8, ExitStatus(code=3, signal=None, core=False)),
        (4, 9, 3 << 8, ExitStatus(code=None, signal=9, core=False)),
        (4, 0x8B, 0, ExitStatus(code=None, signal=11, core=True)),
    ],
)
def test_the_groups_exit_code_counts(guest, flags, group_code, own_code, status):
    address = guest.task(5, dead=True, code=own_code)
    signal = int.from_bytes(guest.ram[address - DIRECT + 88 :][:8], "little")
    guest.set(signal, "signal_struct", flags=flags, group_exit_code=group_code)
    (task,) = guest.kernel().snapshot(0, "").tasks
    assert task.dead
    assert ExitStatus.from_kernel(task.exit_code) == status


def test_the_execve_bit_makes_a_task_transient(guest):
    guest.task(1, in_execve=1)
    guest.task(2, in_execve=0)
    assert [t.transient for t in guest.kernel().snapshot(0, "").tasks] == [True, False]


def test_members_that_a_kernel_lacks_have_defaults_or_are_named(tmp_path):
    guest = SyntheticGuest(tmp_path, drop={"task_struct.in_execve"})
    guest.task(1, in_execve=1)
    assert [t.transient for t in guest.kernel().snapshot(0, "").tasks] == [False]
    with pytest.raises(SymbolsMissing, match="struct task_struct has no member self_exec_id"):
        SyntheticGuest(tmp_path, drop={"task_struct.self_exec_id"}).kernel()


@pytest.mark.parametrize("link", [0, 0xDEAD, DIRECT + RAM - 8, DIRECT - 4096, 0xFFFFFFFFFFFFFFFF])
def test_a_list_that_leads_nowhere_is_torn_and_keeps_what_was_found(guest, link):
    guest.task(1)
    last = guest.task(2)
    guest.put(last + TYPES["task_struct"]["tasks"][0], "<Q", link)
    look = guest.kernel().snapshot(0, "")
    assert look.torn
    assert [t.identity.pid for t in look.tasks][:2] == [1, 2]


def test_a_list_that_bites_its_tail_ends(guest):
    first = guest.task(1)
    last = guest.task(2)
    offset = TYPES["task_struct"]["tasks"][0]
    guest.put(last + offset, "<Q", first + offset)
    look = guest.kernel().snapshot(0, "")
    assert (look.torn, len(look.tasks)) == (True, 2)


@pytest.mark.parametrize("member", ["mm", "signal", "real_cred", "real_parent"])
def test_a_wild_pointer_costs_one_task_and_no_more(guest, member):
    guest.task(1)
    guest.task(2, **{member: 0x4141414141414141})
    guest.task(3)
    look = guest.kernel().snapshot(0, "")
    assert [t.identity.pid for t in look.tasks] == [1, 3]
    assert look.torn


def test_a_thread_list_that_never_ends_is_bounded(guest):
    address = guest.task(1, threads=2)
    node = address + TYPES["task_struct"]["thread_node"][0]
    guest.put(node, "<Q", node)
    assert guest.kernel().snapshot(0, "").tids == {(1, 1000)}


def test_a_freed_task_still_tells_how_it_ended(guest):
    address = guest.task(5)
    kernel = guest.kernel()
    (task,) = kernel.snapshot(0, "").tasks
    assert FreedTasks(kernel).revisit(task) is None, "it is not exiting"
    signal = kernel.task(address).signal
    guest.set(address, "task_struct", flags=4, exit_code=9)
    assert FreedTasks(kernel).revisit(task) is None, "another thread lives on"
    guest.set(signal, "signal_struct", live=0)
    assert FreedTasks(kernel).revisit(task).exit_code == 9
    guest.set(address, "task_struct", start_boottime=1)
    assert FreedTasks(kernel).revisit(task) is None, "the memory is another task's now"


def test_a_freed_task_tells_the_groups_exit_code_and_never_its_own(guest):
    """The leader left first, with 5; the group ended with 6."""
    address = guest.task(5)
    kernel = guest.kernel()
    (task,) = kernel.snapshot(0, "").tasks
    task = task._replace(threads=2)
    signal = kernel.task(address).signal
    guest.set(address, "task_struct", flags=4, exit_code=5 << 8)
    guest.set(signal, "signal_struct", live=0, flags=SIGNAL_GROUP_EXIT, group_exit_code=6 << 8)
    assert FreedTasks(kernel).revisit(task).exit_code == 6 << 8
    guest.set(signal, "signal_struct", curr_target=address + 64)
    assert FreedTasks(kernel).revisit(task) is None, "the memory is another group's now"
    guest.set(address, "task_struct", signal=0x4141414141414141)
    assert FreedTasks(kernel).revisit(task) is None
    assert FreedTasks(kernel).revisit(task._replace(threads=1)).exit_code == 5 << 8, "there was no other one"


def test_arguments_are_read_across_pages_and_cut_at_a_gap(guest):
    address = guest.task(3, uid=4)
    kernel = guest.kernel()
    (task,) = kernel.snapshot(0, "").tasks
    words = b"prog\0" + b"x" * 5000 + b"\0last\0"
    user = 0x7F0000001000
    guest.map_user(task.asid + DIRECT, user, words)
    guest.set(task.mm, "mm_struct", arg_start=user, arg_end=user + len(words))
    process = ProcessReader(kernel).describe(task)
    assert process.args == ("prog", "x" * 5000, "last")
    assert (process.task, process.uid, process.start_ns) == (address, 4, None)
    guest.set(task.mm, "mm_struct", arg_end=user + (1 << 40))
    huge = ProcessReader(kernel).describe(task)
    assert huge.args_truncated
    assert huge.args[:2] == ("prog", "x" * 5000)


def test_exe_and_cwd_are_paths_below_the_processes_root(guest):
    mount = guest.new("mount")
    root = guest.new("dentry")
    guest.set(root, "dentry", d_parent=root)
    guest.set(mount, "mount", mnt_parent=mount)
    mnt = mount + 16

    def entry(parent, name, hashed=1):
        text = guest.allocate(64)
        guest.ram[guest.gpa(text) : guest.gpa(text) + len(name)] = name
        dentry = guest.new("dentry", d_parent=parent)
        guest.put(dentry + 36, "<I", len(name))
        guest.put(dentry + 40, "<Q", text)
        guest.put(dentry + 8, "<Q", hashed)
        return dentry

    usr = entry(root, b"usr")
    tool, gone = entry(usr, b"tool"), entry(usr, b"gone", hashed=0)
    fs, file = guest.new("fs_struct"), guest.new("file")
    for at, pair in ((fs + 8, (mnt, root)), (fs + 24, (mnt, usr)), (file + 16, (mnt, tool))):
        guest.put(at, "<Q", pair[0])
        guest.put(at + 8, "<Q", pair[1])
    guest.task(3, fs=fs)
    kernel = guest.kernel()
    (task,) = kernel.snapshot(0, "").tasks
    guest.set(task.mm, "mm_struct", exe_file=file)
    process = ProcessReader(kernel).describe(task)
    assert (process.exe, process.cwd) == ("/usr/tool", "/usr")
    guest.put(file + 24, "<Q", gone)
    assert ProcessReader(kernel).describe(task).exe == "/usr/gone (deleted)"
    guest.put(usr + 24, "<Q", usr + 1)  # a parent that is no dentry
    assert ProcessReader(kernel).describe(task).exe is None
    guest.put(usr + 24, "<Q", tool)  # a loop
    assert ProcessReader(kernel).describe(task).exe is None


USER = 0x7F0000001000
EXITS, EXECS, REAPED, REUSED = {"mm": 0, "flags": 4}, {"self_exec_id": 1}, {"thread_pid": 0}, {"tgid": 9}


@pytest.mark.parametrize("meanwhile", ["_image", "_read"])
@pytest.mark.parametrize(
    ("change", "told", "told_of_mm"),
    [
        ({}, (4, 77), True),
        ({"comm": b"renamed"}, (4, 77), True),
        ({"real_cred": 8}, (None, 77), True),
        ({"signal": 8}, (4, None), True),
        (EXITS, (4, 77), False),
        (EXECS, (4, 77), False),  # and the new mm has the place of the old one
        (REAPED, (None, None), False),
        (REUSED, (None, None), False),
    ],
)
def test_what_a_process_loses_while_it_is_read_is_not_told(guest, meanwhile, change, told, told_of_mm):
    address = guest.task(3, uid=4)
    kernel = guest.kernel()
    (task,) = kernel.snapshot(0, "").tasks
    guest.map_user(task.asid + DIRECT, USER, b"mine\0")
    guest.set(task.mm, "mm_struct", arg_start=USER, arg_end=USER + 5)
    group = guest.new("pid")
    guest.put(group + TYPES["pid"]["numbers"][0], "<I", 77)
    signal = int.from_bytes(guest.ram[address - DIRECT + 88 :][:8], "little")
    guest.put(signal + TYPES["signal_struct"]["pids"][0] + 8 * 3, "<Q", group)
    reader = ProcessReader(kernel)
    read = getattr(reader, meanwhile)

    def slowly(*arguments):
        found = read(*arguments)
        guest.set(address, "task_struct", **change)
        return found

    setattr(reader, meanwhile, slowly)
    described = reader.describe(task)
    # The command line is read and checked first, and is the process's own if it is lost later.
    args = ("mine",) if told_of_mm or meanwhile == "_read" else None
    assert (described.args, described.euid, described.sid) == (args, *told)
    assert (described.pid, described.uid) == (3, 4), "the look had read them"
    assert (reader.describe(task).args is None) == (not told_of_mm)


def test_describe_survives_a_task_of_garbage(guest):
    guest.task(3, fs=0x41, nsproxy=0x4242, thread_pid=1 << 63, cgroups=7)
    kernel = guest.kernel()
    (task,) = kernel.snapshot(0, "").tasks
    process = ProcessReader(kernel).describe(task._replace(mm=0x43434343))
    assert (process.pid, process.exe, process.cwd, process.args, process.ns_pid) == (
        3,
        None,
        None,
        None,
        None,
    )


def test_a_record_reads_bit_fields_arrays_and_defaults_in_the_order_asked(guest):
    address = guest.task(9, b"name", in_execve=1)
    read = guest.kernel().unpacker(
        "task_struct", (field("tgid"), field("nothing", default=7), field("in_execve"), field("comm"))
    )
    assert read(address) == (9, 7, 1, b"name".ljust(16, b"\0"))
    with pytest.raises(MemoryFault):
        read(DIRECT + RAM - 8)


def test_a_symbol_table_that_is_none_is_said(tmp_path):
    bad = tmp_path / "x.json"
    bad.write_text("{")
    with pytest.raises(SymbolsMissing, match="no usable symbol table"):
        SymbolTable(bad)


def test_a_pointer_into_the_image_below_the_kernel_is_a_fault(guest):
    """With KASLR the first part of the image's addresses has no gpa; a hostile pointer may lead there."""
    address = guest.task(1)
    kernel = guest.kernel()
    lowest = 0xFFFF_FFFF_8000_0000
    with pytest.raises(MemoryFault):
        kernel.task(lowest)
    with pytest.raises(MemoryFault):
        kernel.memory.read(lowest, 8)
    guest.set(address, "task_struct", real_cred=lowest)
    assert guest.kernel().snapshot(0, "").torn


def test_threads_that_lead_to_themselves_are_counted_once(guest):
    address = guest.task(4, threads=2)
    signal = int.from_bytes(guest.ram[address - DIRECT + 88 :][:8], "little")
    guest.set(signal, "signal_struct", nr_threads=0x7FFFFFFF)
    node = address + TYPES["task_struct"]["thread_node"][0]
    guest.put(node, "<Q", node)
    assert guest.kernel().snapshot(0, "").tids == {(4, 4000)}


def test_the_limit_of_a_command_line_goes_with_the_system_and_into_recordings(tmp_path):
    guest = SyntheticGuest(tmp_path)
    guest.task(3)
    system = guest.system()
    (task,) = system.snapshot(0, "").tasks
    user = 0x7F0000001000
    guest.map_user(task.asid + DIRECT, user, b"prog\0long\0")
    guest.set(task.mm, "mm_struct", arg_start=user, arg_end=user + 10, env_start=user + 10, env_end=user + 10)
    assert (system.describe(task).args, system.describe(task).args_truncated) == (("prog", "long"), False)
    system.keep(max_args=7)
    said, table = system.recorded(), guest.isf.read_bytes()
    again = LINUX.recall(guest.memory, X86_64, said, table, system.system)
    for one in (system, system.over(guest.memory), again):
        assert (one.describe(task).args, one.describe(task).args_truncated) == (("prog", "lo"), True)
    for wrong in (0, -1, 1 << 40, "7", None):
        with pytest.raises(ValueError, match="limit of a command line"):
            LINUX.recall(guest.memory, X86_64, {**said, "max_args": wrong}, table, system.system)
