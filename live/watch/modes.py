"""How to be told of what happens in a guest: the one place where a mode is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from live.core.errors import TargetError
from live.core.hypervisor import Guest, TrapOffer
from live.core.machine import Architecture
from live.core.traps import TrapSource

AUTO, POLL = "auto", "poll"
DEFAULT_HOLD = 1.0
"""Seconds that a vCPU is held at most."""

POLL_GUARANTEE = (
    "What lives long enough to be in the task list at a snapshot is seen; what came and went between two "
    "snapshots is counted from the kernel's own counters. An image that another one replaced between two "
    "snapshots is not."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A mode, and why it is not a better one."""

    mode: str
    source: TrapSource | None
    """None in poll mode."""
    description: str
    guarantee: str
    skipped: tuple[str, ...] = ()
    """A sentence for each better mode that could not be had."""

    def close(self) -> None:
        """Remove every trap; the guest runs on.  Safe to call twice."""
        if self.source is not None:
            self.source.close()


def choose(
    guest: Guest, machine: Architecture, mode: str, kinds: frozenset[type], hold: float = DEFAULT_HOLD
) -> Choice:
    """Open the best offer of the guest that works, or the one asked for.  The caller closes ``source``.

    ``mode``: that of an offer, ``"poll"``, or ``"auto"``, which ends at poll and so always finds one.
    ``kinds``: the classes of traps by which all that is wanted can be had, each by itself.  ``hold``: seconds
    that a vCPU may be held at most.  Raises `TargetError` when the mode asked for cannot be had.
    """
    skipped: dict[str, str] = {}
    if mode not in (AUTO, POLL):
        return _chosen(_asked_for(guest, mode).open(machine, kinds, hold), {})
    for offer in guest.offers if mode == AUTO else ():
        reason = offer.reluctance(kinds)
        if reason is not None:
            skipped[offer.mode] = reason
            continue
        try:
            return _chosen(offer.open(machine, kinds, hold), skipped)
        except TargetError as error:
            skipped[offer.mode] = str(error)
    return Choice(
        mode=POLL,
        source=None,
        description="takes a snapshot of the task list at intervals",
        guarantee=POLL_GUARANTEE,
        skipped=_sentences(skipped),
    )


def _asked_for(guest: Guest, mode: str) -> TrapOffer:
    for offer in guest.offers:
        if offer.mode == mode:
            return offer
    there = ", ".join([*(offer.mode for offer in guest.offers), POLL])
    raise TargetError(f"{guest.info.name} cannot be watched in {mode} mode; it can in: {there}.")


def _chosen(source: TrapSource, skipped: dict[str, str]) -> Choice:
    return Choice(
        mode=source.mode,
        source=source,
        description=source.description,
        guarantee=source.guarantee,
        skipped=_sentences(skipped),
    )


def _sentences(skipped: dict[str, str]) -> tuple[str, ...]:
    """``mode: reason``; modes that have a reason in common are named together."""
    modes: dict[str, list[str]] = {}
    for mode, reason in skipped.items():
        modes.setdefault(reason, []).append(mode)
    return tuple(f"{', '.join(names)}: {reason}" for reason, names in modes.items())
