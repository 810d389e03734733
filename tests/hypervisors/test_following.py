"""What is read ahead of being asked for, where each read stops the guest."""

from __future__ import annotations

from live.hypervisors.qemu.memory import following
from live.hypervisors.qemu.memory.following import Following


def generation(one: Following, *lines: int) -> None:
    """Lines are wanted in this order; the first of them is missing."""
    for line in lines:
        one.wanted.setdefault(line)
    one.turn()


def test_what_was_wanted_after_a_miss_follows_it_when_it_happens_again() -> None:
    one = Following()
    one.wanted.setdefault(7)
    assert one.missed(3) is None
    generation(one, 3, 9, 3, 5)
    assert one.missed(9) is None, "it was no miss"
    one.turn()
    assert one.missed(3) == (3, 9, 5), "and what was wanted before it does not"
    generation(one, 3, 4)
    assert one.missed(3) == (3, 4), "the last generation counts"


def test_a_generation_without_a_miss_teaches_nothing() -> None:
    one = Following()
    one.missed(3)
    generation(one, 3, 4)
    generation(one, 8)
    assert one.missed(3) == (3, 4)


def test_what_is_remembered_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(following, "_MAX_KNOWN", 5)
    one = Following()
    one.missed(1)
    generation(one, 1, 2, 3)
    one.missed(11)
    generation(one, 11, 12, 13)
    assert one.missed(1) is None
    assert one.missed(11) == (11, 12, 13)
