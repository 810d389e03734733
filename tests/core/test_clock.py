"""The guest's boot clock from readings that are each a little old."""

from live.core.clock import WINDOW_NS, BootClock
from live.core.events import Identity, ProcessEnd, ProcessStart
from live.core.snapshot import Happening, Moment
from live.core.tracker import Tracker
from live.output.columns import guest_ns, lifetime_ns
from tests.core.build import NOW, describe, replace_time, snapshot, task

HOST = 10**18
MS = 1_000_000


def test_nothing_is_known_before_the_first_reading():
    assert BootClock().at(HOST) is None


def test_the_reading_that_is_least_old_counts():
    clock = BootClock()
    for host, guest in ((HOST, 4990), (HOST + 100, 5090), (HOST + 200, 5198), (HOST + 300, 5290)):
        clock.seen(host, guest)
    assert clock.at(HOST + 300) == 5298


def test_a_guest_that_stood_still_has_fallen_behind():
    clock = BootClock()
    clock.seen(HOST, 5000)
    clock.seen(HOST + 10**9, 6000, 10 * MS)
    assert clock.at(HOST + 10**9) == 6000 + 10 * MS
    clock.seen(HOST + 2 * 10**9, 10**9 + 5990, 0)
    assert clock.at(HOST + 2 * 10**9) == 10**9 + 5990


def test_an_old_difference_is_forgotten():
    clock = BootClock()
    clock.seen(HOST, 5000)
    clock.seen(HOST + WINDOW_NS, 4000 + WINDOW_NS)
    assert clock.at(HOST + WINDOW_NS) == 5000 + WINDOW_NS
    clock.seen(HOST + 2 * WINDOW_NS, 4000 + 2 * WINDOW_NS)
    assert clock.at(HOST + 2 * WINDOW_NS) == 4000 + 2 * WINDOW_NS
    clock.seen(HOST - 5, 100)
    assert clock.at(HOST) == 105, "somebody set the observer's clock back"


def watched(uptimes):
    times = iter(uptimes)
    return Tracker(describe, uptime=lambda: next(times))


def events(tracker):
    found = []
    while (event := tracker.next_event()) is not None:
        found.append(event)
    return found


def test_start_and_end_of_a_process_are_by_one_clock():
    tracker = watched([100 * MS, 104 * MS])
    tracker.receive_tasks(snapshot(time_ns=HOST))
    child = task(7, start=102 * MS)
    tracker.receive(Happening(Moment.FORK, child), replace_time(NOW, HOST))
    # 3 ms later by the observer's clock; the kernel has brought its own up to date 1 ms ago.
    dead = child._replace(dead=True)
    tracker.receive(Happening(Moment.DEATH, dead), replace_time(NOW, HOST + 3 * MS))
    start, end = events(tracker)
    assert (type(start), type(end)) == (ProcessStart, ProcessEnd)
    assert (start.occasion.boottime, end.occasion.boottime) == (102 * MS, 105 * MS)
    assert (lifetime_ns(start), lifetime_ns(end)) == (None, 3 * MS)
    assert guest_ns(end) == HOST + 3 * MS, "where the wall clock at the boot is not known"


def test_what_a_look_finds_is_no_older_than_the_process():
    tracker = watched([50 * MS, 5000 * MS])
    tracker.receive_tasks(snapshot(task(1, start=10 * MS), time_ns=HOST))
    events(tracker)
    look = HOST + 5000 * MS
    tracker.receive_tasks(snapshot(task(1, start=10 * MS, dead=True), task(7, start=4990 * MS), time_ns=look))
    end, start = events(tracker)
    assert (end.process.identity, start.process.identity) == (Identity(1, 10 * MS), Identity(7, 4990 * MS))
    # The reading of the first look was the newer one: 50 ms more than what the second says.
    assert (end.occasion.late_ns, start.occasion.late_ns) == (5000 * MS, 60 * MS)
