"""A Debian that nobody here made: every event, and every field as each process's own /proc has it."""

from __future__ import annotations

import pytest

from tests.distro import fields, report
from tests.distro.run import run

# It makes a root file system of hundreds of packages the first time.
pytestmark = [pytest.mark.guest, pytest.mark.deep]


@pytest.fixture(scope="module")
def outcome():
    outcome = run("6.1", short=True)
    print(report.text(outcome))
    return outcome


def test_the_guest_did_what_it_should(outcome):
    assert (outcome.state, outcome.failed) == ("running", [])
    assert outcome.processes > 200
    assert outcome.held > 200
    assert outcome.fields.held > 200
    assert outcome.fields.compared > 0.99 * outcome.fields.events


def test_every_event_is_seen_once(outcome):
    assert outcome.score.exact, outcome.score
    assert not outcome.invariants
    assert outcome.missed == 0


@pytest.mark.parametrize("name", [*fields.FIELDS, "boot.id", "entity_id", "hostname"])
def test_a_field_is_what_proc_says(outcome, name):
    count = {**outcome.fields.counts, **outcome.boots}[name]
    assert count.compared > 100
    assert (count.wrong, count.unreadable) == (0, 0), count.examples
