"""What the kernel's counters and the lists prove, without a tracker."""

import pytest

from live.core.accounting import Accounting
from tests.core.build import snapshot, task


class Books:
    """An `Accounting` under the calls that a tracker makes, over a set of what it has shown."""

    def __init__(self, *first, forks=100, **changes):
        self.accounting = Accounting()
        self.known = set()
        self.take(*first, forks=forks, **changes)

    @property
    def missed(self):
        return self.accounting.missed

    def take(self, *tasks, forks, torn=False, tids=None):
        """A snapshot that shows what is complete."""
        one = snapshot(*tasks, forks=forks, torn=torn, tids=tids)
        self.accounting.count(one, self.known)
        if not torn:
            self.known &= {t.identity for t in tasks}
        for t in tasks:
            if not t.transient:
                self.show(t)
        self.accounting.settle(one, self.known)
        return self.missed

    def show(self, t):
        self.known.add(t.identity)
        self.accounting.shown(t.identity)

    def die_late(self, t):
        self.accounting.shown_late(t.identity)
        self.show(t)


def test_nothing_is_missed_before_there_is_a_list_to_compare_with():
    books = Books(task(1), forks=12345)
    assert books.missed == 0
    assert books.accounting.counters.forks == 12345


def test_missed_is_created_less_found():
    books = Books(task(1), forks=100)
    assert books.take(task(1), task(7), forks=105) == 4
    assert books.take(task(1), task(9), forks=107) == 5


def test_a_quiet_guest_proves_that_nothing_was_missed():
    books = Books(task(1), forks=100)
    assert [books.take(task(1), forks=100) for _ in range(3)] == [0, 0, 0]


def test_a_thread_is_found_by_its_tid():
    books = Books(task(1), forks=10)
    assert books.take(task(1), forks=12, tids=[(1, 1000), (8, 5), (9, 6)]) == 0
    assert books.take(task(1), forks=13, tids=[(1, 1000)]) == 1


def test_a_pid_that_is_used_again_is_found_again():
    books = Books(task(5, start=1), forks=10)
    assert books.take(task(5, start=2), forks=11) == 0


def test_what_a_trap_reported_was_seen_even_if_it_is_gone():
    books = Books(task(1), forks=100)
    books.accounting.created(7, 7000)
    assert books.take(task(1), forks=102) == 1


def test_what_a_trap_reported_and_the_list_has_is_found_once():
    books = Books(task(1), forks=100)
    books.accounting.created(7, 7000)
    assert books.take(task(1), task(7), forks=102) == 1


def test_a_trap_counts_for_one_interval_only():
    books = Books(task(1), forks=100)
    books.accounting.created(7, 7000)
    assert books.take(task(1), forks=101) == 0
    assert books.take(task(1), forks=102) == 1


def test_what_is_listed_before_the_kernel_counts_it_is_not_missed():
    books = Books(task(1), forks=100)
    assert books.take(task(1), task(7), forks=100) == 0
    assert books.take(task(1), task(7), forks=100) == 0, "the surplus is carried on"
    assert books.take(task(1), task(7), forks=101) == 0
    assert books.take(task(1), task(7), forks=103) == 2


def test_the_counter_wraps():
    books = Books(task(1), forks=2**64 - 1)
    assert books.take(task(1), forks=2) == 3


@pytest.mark.parametrize(("back", "forward"), [(3, 4), (99, 100)])
def test_a_counter_that_is_turned_back_is_no_loss(back, forward):
    books = Books(task(1), forks=100)
    assert books.take(task(1), forks=back) == 0
    assert books.take(task(1), forks=forward) == 1, "counted on from where it was turned to"


@pytest.mark.parametrize(("created", "missed"), [(2**40 - 1, 2**40 - 1), (2**40, 0)])
def test_more_than_can_be_created_between_two_snapshots_is_a_lie(created, missed):
    assert Books(task(1), forks=0).take(task(1), forks=created) == missed


def test_a_torn_snapshot_counts_nothing_and_moves_no_counter():
    books = Books(task(1), forks=100)
    assert books.take(task(1), forks=200, torn=True) == 0
    assert books.accounting.counters.forks == 100
    assert books.take(task(1), forks=107) == 7


def test_a_torn_snapshot_does_not_start_the_count():
    books = Books(task(1), forks=100, torn=True)
    assert books.accounting.counters is None
    assert books.take(task(1), forks=200) == 0


def test_what_only_a_torn_snapshot_found_is_not_missed():
    books = Books(task(1), forks=1)
    books.take(task(1), task(2), forks=2, torn=True)
    assert books.take(task(1), forks=3) == 1


def test_what_only_a_torn_snapshot_found_inside_execve_is_missed():
    books = Books(task(1), forks=1)
    books.take(task(1), task(2, transient=True), forks=2, torn=True)
    assert books.take(task(1), forks=2) == 1


def test_what_is_known_is_found_by_a_torn_snapshot_inside_execve_too():
    """A trap showed it, a torn snapshot found it inside its next execve, and it is gone."""
    books = Books(task(1), forks=1)
    books.show(task(2))
    books.take(task(1), task(2, transient=True), forks=2, torn=True)
    assert books.take(task(1), forks=2) == 0


def test_what_left_the_list_inside_execve_is_missed():
    books = Books(task(1), forks=0)
    assert books.take(task(1), task(5, transient=True), forks=1) == 0
    assert books.take(task(1), task(5, transient=True), forks=1, torn=True) == 0
    assert books.take(task(1), forks=1, torn=True) == 0, "a torn list proves no absence"
    assert books.take(task(1), forks=1) == 1


def test_what_was_inside_execve_when_we_attached_and_left_is_missed():
    assert Books(task(1), task(5, transient=True)).take(task(1), forks=100) == 1


def test_what_came_out_of_execve_is_not_missed():
    books = Books(task(1), forks=0)
    books.take(task(1), task(5, transient=True), forks=1)
    books.take(task(1), task(5, generation=1), forks=1)
    assert books.take(task(1), forks=1) == 0


def test_what_a_trap_showed_after_a_snapshot_had_it_inside_execve_is_not_missed():
    books = Books(task(1), forks=0)
    books.take(task(1), task(5, transient=True), forks=1)
    books.show(task(5, generation=1))
    books.known.clear()  # and it is dead and reaped
    assert books.take(task(1), forks=1) == 0


def test_a_death_takes_back_what_a_snapshot_had_counted_as_missed():
    books = Books(forks=0)
    assert books.take(forks=2) == 2
    books.die_late(task(5, dead=True))
    assert books.missed == 1
    assert books.take(forks=2) == 1


def test_deaths_take_back_no_more_than_the_last_snapshot_counted():
    books = Books(forks=0)
    assert books.take(forks=3) == 3
    assert books.take(forks=4) == 4
    books.die_late(task(5, dead=True))
    books.die_late(task(6, dead=True))
    assert books.missed == 3, "the second one is of the interval that is not counted yet"
    assert books.take(forks=5) == 3


def test_a_death_before_the_snapshot_counts_as_found():
    books = Books(forks=0)
    books.die_late(task(5, dead=True))
    assert books.take(forks=2) == 1


def test_the_death_of_what_is_on_the_last_list_takes_nothing_back():
    books = Books(forks=0)
    books.take(task(5, transient=True), forks=3)
    assert books.missed == 2
    books.die_late(task(5, dead=True))
    assert books.missed == 2
    assert books.take(forks=3) == 2
