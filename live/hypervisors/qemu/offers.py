"""Which source of traps a guest gets: plugin, else gdb stub, else none (poll); and what to say about it."""

from __future__ import annotations

from dataclasses import dataclass

from live.core.errors import TargetError
from live.core.traps import Access, CodeHit, TrapSource
from live.hypervisors.qemu.gdbstub.source import GdbSource
from live.hypervisors.qemu.guest import QemuGuest
from live.hypervisors.qemu.plugin.source import PluginSource
from live.hypervisors.qemu.tb_invalidation import remake

MODES = ("plugin", "gdbstub", "poll")
"""Best first."""
AUTO = "auto"
_STAND_LIMIT = 5.0

POLL_GUARANTEE = (
    "What lives long enough to be in the task list at a look is seen; what came and went between two looks "
    "is counted from the kernel's own counters. An image that another one replaced between two looks is not."
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


def choose(
    guest: QemuGuest, mode: str = AUTO, hold: float = 1.0, ways: frozenset[type] = frozenset({CodeHit})
) -> Choice:
    """Open the best source that works, or the one asked for.  The caller closes ``source``.

    ``hold`` is the limit in seconds of a vCPU's wait; ``ways`` are the classes of traps by which all that is
    wanted can be had, each by itself.  Raises `TargetError` when the mode asked for cannot be had, with what
    to do about it; ``auto`` ends at poll, which always works.
    """
    wanted: tuple[str, ...] = MODES if mode == AUTO else (mode,)
    # Under TCG each stop at a breakpoint makes QEMU translate the guest anew; one at a watchpoint does not.
    watch = guest.info.accel == "tcg" and Access in ways
    skipped: list[str] = []
    for one in wanted:
        if one == "poll":
            break
        if one == "gdbstub" and mode == AUTO and guest.info.accel == "tcg" and not watch:
            # What the user did not ask for must not slow the guest down so much.
            skipped.append(
                "gdbstub: under TCG, and with breakpoints, as this guest would need, it slows the guest down "
                "a lot; ask for it with --mode gdbstub."
            )
            continue
        try:
            source = _open(guest, one, hold, watch)
        except TargetError as error:
            if mode != AUTO:
                raise
            skipped.append(f"{one}: {error}")
            continue
        return Choice(
            mode=one,
            source=source,
            description=source.description,
            guarantee=source.guarantee,
            skipped=tuple(skipped),
        )
    return Choice(
        mode="poll",
        source=None,
        description="looks at the task list at intervals",
        guarantee=POLL_GUARANTEE,
        skipped=tuple(skipped),
    )


def _open(guest: QemuGuest, mode: str, hold: float, watch: bool) -> TrapSource:
    if mode == "gdbstub":
        return GdbSource(guest, hold, watch=watch)
    if mode != "plugin":
        raise TargetError(f"There is no mode {mode!r}; use one of {', '.join(MODES)}, or {AUTO}.")
    if guest.info.accel != "tcg":
        raise TargetError(f"Plugins work under TCG only, and this guest runs on {guest.info.accel}.")
    version = tuple(int(part) for part in guest.version.split(".")[:2] if part.isdigit())
    if version and version < (9, 2):
        raise TargetError(f"QEMU {guest.version} is too old for the trap plugin; it needs 9.2 or newer.")
    if guest.info.plugin_socket is None:
        raise TargetError(
            'The guest was started without the trap plugin; start it with -plugin "$(pse plugin SOCKET)".'
        )
    return PluginSource(
        guest.info.plugin_socket,
        guest.memory,
        hold,
        nudge=lambda: _stand(guest),
        remake=lambda gpas: remake(guest, gpas),
    )


def _stand(guest: QemuGuest) -> None:
    with guest.pause(_STAND_LIMIT):
        pass
