"""Which boot it is: the same for every observer, whenever he came."""

import dataclasses

import pytest

from live.core.events import Identity
from live.linux.boot import boot_key
from live.output.ecs import entity_id
from tests.linux.synthetic import SyntheticGuest

PID_1 = Identity(1, 1000)


@pytest.fixture
def guest(tmp_path):
    guest = SyntheticGuest(tmp_path, more={"sysctl_bootid": None, "init_uts_ns": None})
    guest.set(guest.init_task, "task_struct", stack_canary=0x1234567890ABCD00)
    guest.task(1, b"init")
    write(guest, "init_uts_ns", 16, b"(none)\0")
    write(guest, "init_uts_ns", 16 + 65, b"9.9\0")
    return guest


def write(guest, symbol, offset, data):
    at = guest.gpa(guest.global_(symbol)) + offset
    guest.ram[at : at + len(data)] = data


def test_who_comes_early_has_the_same_identity_and_learns_the_rest(guest):
    early = guest.system()
    assert (early.system.hostname, early.system.release, early.system.boot_id_known) == (None, "9.9", False)
    before = entity_id(early.system, PID_1)
    write(guest, "sysctl_bootid", 0, bytes(range(16)))
    write(guest, "init_uts_ns", 16, b"web-1\0")
    early.uptime()
    assert (early.system.hostname, early.system.boot_id_known) == ("web-1", True)
    assert early.system.boot_id == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert early.system == guest.system().system
    assert entity_id(early.system, PID_1) == before == entity_id(guest.system().system, PID_1)


def test_a_name_that_changes_is_followed_and_one_that_is_lost_is_kept(guest):
    system = guest.system()
    for raw, name in ((b"a\0", "a"), (b"b\0", "b"), (b"\0", "b"), (b"(none)\0", "b")):
        write(guest, "init_uts_ns", 16, raw)
        system.uptime()
        assert system.system.hostname == name


def test_the_next_boot_is_another_one(guest):
    key = boot_key(guest.kernel())
    guest.task(2, b"kthreadd")
    assert boot_key(guest.kernel()) == key
    guest.set(guest.init_task, "task_struct", stack_canary=0x1234567890ABCE00)
    assert boot_key(guest.kernel()) not in (key, "")


def test_before_the_first_process_there_is_no_boot_to_tell(tmp_path):
    assert boot_key(SyntheticGuest(tmp_path).kernel()) == ""


def test_a_recording_of_an_older_version_keeps_its_identities(guest):
    old = dataclasses.replace(guest.system().system, key="", boot_id="b" * 36)
    assert entity_id(old, PID_1) == entity_id(dataclasses.replace(old, boot_id_known=True), PID_1)
    assert entity_id(old, PID_1) != entity_id(dataclasses.replace(old, boot_id="c" * 36), PID_1)


def test_a_recording_that_was_made_before_it_was_read_again_stays_as_it_says(guest):
    said = guest.system().system
    write(guest, "init_uts_ns", 16, b"web-1\0")
    again = guest.system(system=said)
    again._current = False
    assert (again.uptime(), again.system) == (None, said)
