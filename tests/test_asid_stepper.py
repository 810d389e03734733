"""Steps at asid changes and system calls: what their events say of when and how they were seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from live.watch.asid_stepper import AsidStepper, stepper_of
from live.watch.stepper import Stepper
from tests.core.asid_guest import KERNEL, Guest, child_of, corpse, image, mark_of, process
from tests.core.build import describe
from tests.hypervisors.fake import asid_change, code_hit, syscall

INIT, SHELL = process(1), process(2)


class Describing(Guest):
    """Writes down whether what it is asked for stands still."""

    def describe(self, found, *, standing=False):
        self.stood = standing
        return describe(found)


@pytest.fixture
def guest():
    return Describing(INIT, SHELL)


def occasions(events):
    return {(event.occasion.trigger, event.occasion.late_ns) for event in events}


def moved(guest, *words, number=1, asid=KERNEL, **rest):
    guest.moved.clear()
    return asid_change(number, asid, words=words or (Guest.words[0].gpa,), **rest)


def test_a_new_process_is_as_late_as_its_trap(guest):
    guest.put(child_of(SHELL, 5))
    assert occasions(guest.stepper.trap(moved(guest), 1000, 7)) == {("asid change", 7)}


def test_an_image_is_as_late_as_its_trap(guest):
    new = guest.put(image(SHELL))
    trap = syscall(1, 0, asid=new.asid, current=new.address)
    assert occasions(guest.stepper.trap(trap, 1000, 7)) == {("system call", 7)}


@pytest.mark.parametrize("before", ["trap", "look"])
def test_a_death_may_be_as_old_as_the_last_asid_change(guest, before):
    """Whatever the trap that tells of it: words are compared at each of them."""
    if before == "trap":
        guest.stepper.trap(asid_change(1, 0x7_8000), 300, 0)
    else:
        guest.stepper.snapshot(300, "timer")
    guest.put(corpse(SHELL))
    assert occasions(guest.stepper.trap(moved(guest, mark_of(SHELL), number=2), 1000, 7)) == {
        ("asid change", 700)
    }


def test_a_system_call_compares_no_words(guest):
    guest.stepper.trap(asid_change(1, 0x7_8000), 300, 0)
    child = guest.put(child_of(SHELL, 5))
    guest.stepper.trap(syscall(2, 0, asid=child.asid, current=child.address), 500, 0)
    guest.put(corpse(SHELL))
    (event,) = guest.stepper.trap(moved(guest, mark_of(SHELL), number=3), 1000, 7)
    assert event.occasion.late_ns == 700


def test_a_process_that_a_look_at_all_finds_is_as_late_as_the_trap():
    guest = Guest(INIT, SHELL, tells_words=False)
    guest.put(child_of(SHELL, 5))
    trap = replace(asid_change(1, KERNEL), moved=True)
    assert occasions(guest.stepper.trap(trap, 1000, 7)) == {("asid change", 7)}


def test_one_that_a_look_finds_is_as_late_as_the_look_before(guest):
    guest.put(child_of(SHELL, 5))
    assert occasions(guest.stepper.snapshot(1000, "timer")) == {("timer", 1000)}


@pytest.mark.parametrize("held", [True, False])
def test_who_makes_a_call_stands_while_it_is_held(guest, held):
    new = guest.put(image(SHELL))
    guest.stepper.trap(syscall(1, 0, asid=new.asid, current=new.address, held=held), 0, 0)
    assert guest.stood == held


@pytest.mark.parametrize("to_child", [True, False])
def test_of_what_a_word_tells_only_who_is_about_to_run_stands(guest, to_child):
    child = guest.put(child_of(SHELL, 5))
    guest.stepper.trap(moved(guest, asid=child.asid if to_child else KERNEL), 0, 0)
    assert guest.stood == to_child


def test_other_traps_tell_nothing(guest):
    guest.put(child_of(SHELL, 5))
    guest.reads.clear()
    assert guest.stepper.trap(code_hit(1, 0x1000), 0, 0) == []
    assert guest.reads == []


@pytest.mark.parametrize("mode", ["asid", "diff", "poll", "plugin"])
def test_who_takes_the_steps_of_a_mode(guest, mode):
    kind = AsidStepper if mode in ("asid", "diff") else Stepper
    assert type(stepper_of(mode, guest, None)) is kind
