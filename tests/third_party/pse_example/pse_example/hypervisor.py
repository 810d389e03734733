"""Guests that stand still: the files NAME.ram in the directory that $PSE_EXAMPLE names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from live.core.errors import GuestGone, NoTarget, TargetError
from live.core.hypervisor import Guest, GuestInfo, TrapOffer
from pse_example.memory import FileMemory


class ExampleGuest:
    """A `live.core.hypervisor.Guest` with memory and nothing else: what it lacks is None."""

    registers = None
    pauses = None
    notices = None
    unplaced = None
    offers: Sequence[TrapOffer] = ()

    def __init__(self, info: GuestInfo, memory: FileMemory) -> None:
        """Owns the memory."""
        self.info = info
        self.memory = memory
        self.notes = (f"{info.name} is a file: nothing happens in it",)

    def alive(self) -> bool:
        """Until it is closed: a file does not end."""
        return self.memory.flat is not None

    def gone(self) -> GuestGone:
        """It does not end, but it has to be said how that would be said."""
        return GuestGone(f"The guest {self.info.name} is gone; look where its file is.")

    def keep_memory_only(self) -> None:
        """There is nothing else."""

    def close(self) -> None:
        """Let go of the file."""
        self.memory.close()


class ExampleHypervisor:
    """A `live.core.hypervisor.Hypervisor`."""

    scheme = "example"
    title = "files that were guests"

    def guests(self) -> Sequence[GuestInfo]:
        """One for each file."""
        directory = os.environ.get("PSE_EXAMPLE")
        return [_info(path) for path in sorted(Path(directory).glob("*.ram"))] if directory else []

    def attach(self, target: str | None) -> Guest:
        """By name."""
        found = [info for info in self.guests() if target in (None, info.name)]
        if len(found) != 1:
            names = ", ".join(info.name for info in self.guests()) or "none"
            raise NoTarget(f"There is no one example called {target}; there are: {names}.")
        try:
            return ExampleGuest(found[0], FileMemory(Path(found[0].control)))
        except (OSError, ValueError) as error:
            raise TargetError(
                f"{found[0].control} cannot be mapped ({error}); take the image anew."
            ) from error


def _info(path: Path) -> GuestInfo:
    return GuestInfo(name=path.stem, memory=path.stat().st_size, control=str(path))


EXAMPLE = ExampleHypervisor()
