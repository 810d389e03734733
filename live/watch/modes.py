"""How to be told of what happens in a guest: the one place where a mode is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from live.core.asids import AsidMode
from live.core.errors import TargetError
from live.core.hypervisor import Guest, TrapOffer
from live.core.machine import Architecture
from live.core.traps import AsidChange, Syscall, TrapSource

AUTO, POLL = "auto", "poll"
DEFAULT_HOLD = 1.0
"""Seconds that a vCPU is held at most."""

POLL_GUARANTEE = (
    "What lives long enough to be in the task list at a snapshot is seen; what came and went between two "
    "snapshots is counted from the kernel's own counters. An image that another one replaced between two "
    "snapshots is not."
)


@dataclass(frozen=True, slots=True)
class AsidTraps:
    """A mode that traps asid changes: the classes of traps that it needs, and what it can miss."""

    needs: frozenset[type]
    guarantee: str


ASID_TRAPS: Mapping[str, AsidTraps] = {
    AsidMode.ASID.value: AsidTraps(
        frozenset({AsidChange, Syscall}),
        "Every process is seen before its first instruction, or its first system call where it shares the "
        "asid of another one; every image before its first system call; every end at the next asid change. "
        "What comes and goes between two asid changes is counted from the kernel's own counters.",
    ),
    AsidMode.DIFF.value: AsidTraps(
        frozenset({AsidChange}),
        "The task list is compared at every asid change: what changes back until the next one is not seen, "
        "and what is seen may be incomplete. Processes that come and go in between are counted from the "
        "kernel's own counters. This mode is for comparison.",
    ),
}


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

    ``mode``: that of an offer, ``"asid"``, ``"diff"``, ``"poll"``, or ``"auto"``, which ends at poll and so
    always finds one.  ``kinds``: the classes of traps by which all that is wanted can be had, each by itself;
    none: asid changes are left.  ``hold``: seconds that a vCPU may be held at most.  Raises `TargetError`
    when the mode asked for cannot be had.
    """
    skipped: dict[str, str] = {}
    if mode in ASID_TRAPS:
        return _by_asids(guest, machine, mode, hold)
    if mode not in (AUTO, POLL):
        return _chosen(_asked_for(guest, mode).open(machine, kinds, hold), {})
    offers = guest.offers if mode == AUTO else ()
    for offer in offers:
        if not offer.supports & kinds:
            if not ASID_TRAPS["asid"].needs <= offer.supports:
                skipped[offer.mode] = "it traps neither the kernel's functions nor asids with system calls"
            continue
        reason = offer.reluctance(kinds)
        if reason is not None:
            skipped[offer.mode] = reason
            continue
        try:
            return _chosen(offer.open(machine, kinds, hold), skipped)
        except TargetError as error:
            skipped[offer.mode] = str(error)
    if any(ASID_TRAPS["asid"].needs <= offer.supports and not offer.supports & kinds for offer in offers):
        try:
            return replace(_by_asids(guest, machine, "asid", hold), skipped=_sentences(skipped))
        except TargetError as error:
            skipped["asid"] = str(error)
    return Choice(
        mode=POLL,
        source=None,
        description="takes a snapshot of the task list at intervals",
        guarantee=POLL_GUARANTEE,
        skipped=_sentences(skipped),
    )


def _by_asids(guest: Guest, machine: Architecture, mode: str, hold: float) -> Choice:
    needs = ASID_TRAPS[mode].needs
    failed: TargetError | None = None
    for offer in guest.offers:
        if not needs <= offer.supports:
            continue
        try:
            choice = _chosen(offer.open(machine, needs, hold), {})
        except TargetError as error:
            failed = failed or error
            continue
        return replace(choice, mode=mode, guarantee=ASID_TRAPS[mode].guarantee)
    if failed is not None:
        raise failed
    raise TargetError(
        f"{guest.info.name} cannot be watched in {mode} mode: nothing that it offers traps asid changes"
        f"{' and system calls' if Syscall in needs else ''}; it can be watched in: {_modes_of(guest)}."
    )


def _modes_of(guest: Guest) -> str:
    modes = [offer.mode for offer in guest.offers]
    by_asids = [
        mode
        for mode, traps in ASID_TRAPS.items()
        if any(traps.needs <= offer.supports for offer in guest.offers)
    ]
    return ", ".join([*modes, *by_asids, POLL])


def _asked_for(guest: Guest, mode: str) -> TrapOffer:
    for offer in guest.offers:
        if offer.mode == mode:
            return offer
    raise TargetError(f"{guest.info.name} cannot be watched in {mode} mode; it can in: {_modes_of(guest)}.")


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
