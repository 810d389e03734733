"""Where the guest's clocks are, and what they say."""

import struct

import pytest

from live.linux.clock import Clocks, KernelClock
from tests.linux.synthetic import SyntheticGuest

BASE = 1_700_000_000_000_000_000
NS = 1_000_000_000


def set_clock(guest, inside, sequence=2):
    core = guest.gpa(guest.global_("tk_core"))
    struct.pack_into("<I", guest.ram, core, sequence)
    # 100 s since the boot, 7 of them suspended; 0.5 s in the current second, in units of 1/256 ns.
    values = (BASE - 93 * NS, 7 * NS, (BASE + 7 * NS) // NS, 500_000_000 << 8, 93 * NS, 8)
    struct.pack_into("<qqQQqI", guest.ram, core + inside, *values)


@pytest.mark.parametrize(
    ("drop", "kind", "inside"),
    [
        ((), "unnamed_1", 16),
        ((), None, 16),
        (("seqcount_raw_spinlock",), None, 8),
    ],
    ids=["its type", "a lock's counter", "a counter alone"],
)
def test_the_timekeeper_is_found_by_types(tmp_path, drop, kind, inside):
    """On PREEMPT_RT the counter in front of it is larger; at a fixed offset of 8 the year was 1913."""
    guest = SyntheticGuest(tmp_path, drop=drop, more={"tk_core": kind})
    set_clock(guest, inside)
    assert KernelClock(guest.kernel()).read() == Clocks(
        wall_ns=(BASE + 7 * NS) // NS * NS + NS // 2,
        boot_ns=100 * NS + NS // 2,
        epoch_ns=BASE - 100 * NS,
    )


def test_a_clock_that_is_being_set_is_not_read(tmp_path):
    guest = SyntheticGuest(tmp_path, more={"tk_core": None})
    set_clock(guest, 16, sequence=3)
    assert KernelClock(guest.kernel()).read() is None


def test_a_kernel_without_one_has_no_clock(tmp_path):
    assert KernelClock(SyntheticGuest(tmp_path).kernel()).read() is None


def test_a_process_starts_and_ends_by_the_guests_clock(tmp_path):
    guest = SyntheticGuest(tmp_path, more={"tk_core": None})
    set_clock(guest, 16)
    guest.task(4, start_boottime=60 * NS)
    system = guest.system()
    (task,) = system.snapshot(0, "").tasks
    assert system.describe(task).start_ns == BASE - 40 * NS
    assert system.uptime() == 100 * NS + NS // 2
