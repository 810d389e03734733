"""Watched by asid changes over the fake of PANDA: a toy runs in it, and its story makes the same events."""

from __future__ import annotations

import threading
import time

import pytest

from live.core.errors import GuestGone, TargetError
from live.core.events import Event
from live.core.traps import AsidChange, TrapRequest
from live.hypervisors.panda import guest
from live.testing.sentences import check_error
from live.watch.monitor import Monitor
from live.watch.session import Session
from tests.hypervisors.panda_fake import FakePanda
from tests.hypervisors.panda_runs import KINDS, PATIENCE, Running
from tests.toy.story import EVENTS, RUNNING, short
from tests.toy.system import TOY
from tests.toy.world import STRIDE, TABLE, World, page_of

CHILD = TABLE + 2 * STRIDE
"""Where the third task is, and what follows when that one was reaped."""


class Watched:
    """A toy in PANDA that one thread runs and another one watches."""

    def __init__(self, **options: object) -> None:
        self.world = World()
        self.world.ram.extend(bytes((2 << 20) - len(self.world.ram)))
        self.panda = FakePanda(ram=self.world.ram, **options)
        self.panda.cpus[0].env_ptr.cr[3] = page_of(self.world.shell)
        self.guest = guest(self.panda)
        self.events: list[Event] = []
        self.requests: list[TrapRequest] = []
        self.monitor: Monitor | None = None
        self.error: BaseException | None = None
        self._attached = threading.Event()

    def _watch(self, mode: str) -> None:
        try:
            with Session(self.guest, systems_wanted=[TOY]) as session:
                self.monitor = Monitor(session, mode=mode)
                source = self.monitor.choice.source
                arm = source.arm
                source.arm = lambda request: self.requests.append(request) or arm(request)
                for batch in self.monitor.batches(duration=30):
                    self.events += batch
                    self._attached.set()
        except BaseException as error:
            self.error = error
            self._attached.set()

    def story(self, mode: str) -> None:
        """That of the toy, by the vCPU; what is seen of it is in ``events``."""
        thread = threading.Thread(target=self._watch, args=(mode,))
        thread.start()
        with Running(self.panda):
            assert self._attached.wait(PATIENCE)
            if self.error is not None:
                raise self.error
            assert [short(event) for event in self.events] == RUNNING
            self._execute()
            self.panda.done()()
            deadline = time.monotonic() + PATIENCE
            while len(self.events) < len(EVENTS):
                assert self.error is None, self.error
                assert time.monotonic() < deadline, [short(event) for event in self.events]
                time.sleep(0.01)
        thread.join(PATIENCE)
        assert isinstance(self.error, GuestGone)

    def _execute(self) -> None:
        world, panda = self.world, self.panda
        panda.do(lambda: world.fork(2))
        panda.load_root(page_of(CHILD) | 1)
        panda.do(lambda: world.execute(CHILD, b"ls", b"/bin/ls", b"-l"))
        panda.call(1)
        panda.do(lambda: world.exit(CHILD, 0))
        panda.load_root(page_of(world.shell))
        panda.do(lambda: world.reap(CHILD))
        panda.do(lambda: world.fork(2))
        panda.load_root(page_of(CHILD) | 2)
        panda.do(lambda: world.exit(CHILD, 7))
        panda.load_root(page_of(world.shell))


def test_asid_mode_is_what_there_is():
    watched = Watched()
    watched.story("auto")
    assert watched.monitor is not None
    assert watched.monitor.mode == "asid"
    assert watched.monitor.choice.skipped == ()
    assert [short(event) for event in watched.events] == EVENTS
    counts = watched.monitor.counts
    assert (counts.missed, counts.unexpected, counts.late, counts.torn) == (0, 0, 0, 0)
    assert "asid change" in {event.occasion.trigger for event in watched.events}
    assert watched.monitor.cost.held_ns > 0


def test_asids_that_no_bit_splits():
    """The toy's page tables are a page apart, so the bit is the address's."""
    watched = Watched()
    watched.story("asid")
    first, *_, last = [one for one in watched.requests if one != TrapRequest()]
    assert (first.split_asids, last.split_asids) == (True, False)
    assert len(last.settled) == 2, "init and the shell, which have executed: their pages are new"
    assert {word.gpa for word in last.words} >= {watched.world.shell, CHILD}


def test_diff_mode_needs_no_system_calls():
    watched = Watched(os_version=None)
    watched.story("diff")
    assert watched.monitor is not None
    assert watched.monitor.mode == "diff"
    assert [short(event) for event in watched.events] == EVENTS
    assert watched.monitor.counts.missed == 0


def test_without_system_calls_auto_mode_polls_and_asid_mode_is_an_error():
    for watched in (Watched(os_version=None), Watched(vcpus=2)):
        with Running(watched.panda), Session(watched.guest, systems_wanted=[TOY]) as session:
            assert watched.guest.supports == {AsidChange}
            assert session.choose("auto").mode == "poll"
            assert "system calls cannot be trapped" in " ".join(session.notes)
            with pytest.raises(TargetError, match="panda, diff, poll") as caught:
                session.choose("asid")
            check_error(caught.value)


def test_what_the_offer_says_its_source_has():
    watched = Watched()
    with Running(watched.panda), Session(watched.guest, systems_wanted=[TOY]) as session:
        choice = session.choose("auto")
        assert choice.source is not None
        assert choice.source.supports == watched.guest.supports == KINDS
        choice.close()
