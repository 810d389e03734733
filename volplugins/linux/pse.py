"""``linux.pse``: process events from an image, a series of images, a recording or a running guest."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volatility3.framework import exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.plugins import timeliner

# In a bare checkout `live` is not installed. Without it Volatility would say only that no such plugin exists.
if importlib.util.find_spec("live") is None:
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from live.core.errors import PseError
from live.core.events import Event
from live.core.text import printable
from live.output.columns import process_of
from live.volatility.output import grid, programs, sources

vollog = logging.getLogger(__name__)

_LOCATION = "automagic.LayerStacker.single_location"
_KINDS = {
    "created": timeliner.TimeLinerType.CREATED,
    "changed": timeliner.TimeLinerType.CHANGED,
    "modified": timeliner.TimeLinerType.MODIFIED,
}


class Pse(interfaces.plugins.PluginInterface, timeliner.TimeLinerInterface):  # type: ignore[misc]
    """Lists process start, exec and end events from images, a recording or a running guest.

    -f IMAGE shows the running processes and ended ones that are still visible; --next IMAGE ... adds the
    changes from each image to the next of the same boot; -f RECORDING (made with pse record) shows its
    events; -f qemu:///PATH, the path of a QEMU monitor socket, or -f process:///PID, the pid of any VMM,
    watches that guest.
    """

    _required_framework_version = (2, 0, 0)
    _version = (1, 0, 0)

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """Options only: the input is named by ``-f`` and needs no layer, because a running guest has none."""
        return [
            requirements.VersionRequirement(
                name="timeliner", component=timeliner.TimeLinerInterface, version=(1, 0, 0)
            ),
            requirements.ListRequirement(
                name="pid", element_type=int, description="Filter on specific process IDs", optional=True
            ),
            requirements.BooleanRequirement(
                name="tree", description="Show processes below their parents", optional=True, default=False
            ),
            requirements.ListRequirement(
                name="next", element_type=str, description="Later images of the same boot", optional=True
            ),
            requirements.IntRequirement(
                name="duration", description="Watch a live guest for so many seconds", optional=True
            ),
            requirements.StringRequirement(
                name="mode",
                description="How a live guest is watched: plugin, gdbstub, asid, diff or poll (default: the "
                "best that it offers)",
                optional=True,
            ),
            requirements.IntRequirement(
                name="count", description="Show no more than so many events", optional=True
            ),
            requirements.BooleanRequirement(
                name="new", description="Leave out what was running already", optional=True, default=False
            ),
            requirements.BooleanRequirement(
                name="dump",
                description="Write the programs that start to files, out of memory",
                optional=True,
                default=False,
            ),
            requirements.BooleanRequirement(
                name="kernel-threads", description="Show kernel threads too", optional=True, default=False
            ),
        ]

    def _events(self, duration: float | None) -> Iterator[Event]:
        location = self.context.config.get(_LOCATION, None) or ""
        to_url = requirements.URIRequirement.location_from_file
        try:
            options = sources.Options(
                location=location,
                following=tuple(map(to_url, self.config.get("next", None) or ())),
                duration=duration,
                mode=self.config.get("mode", None) or "auto",
                count=self.config.get("count", None),
                pids=frozenset(self.config.get("pid", None) or ()),
                new=bool(self.config.get("new", False)),
                kernel_threads=bool(self.config.get("kernel-threads", False)),
                progress=self._progress_callback,
            )
            self._source = sources.open_source(options)
            for item in sources.select(self._source, options):
                if isinstance(item, str):
                    vollog.warning("%s", printable(item))
                else:
                    yield item
        except KeyboardInterrupt:
            return  # the user ends a live run
        except (PseError, ValueError) as error:
            raise exceptions.LayerException(location or "none", printable(str(error))) from error

    def generate_timeline(self) -> Iterator[tuple[str, timeliner.TimeLinerType, Any]]:
        """See `timeliner.TimeLinerInterface`; of a running guest, its processes at this time."""
        for text, kind, time in grid.timeline(self._events(self.config.get("duration", None) or 0.0)):
            yield text, _KINDS[kind], time

    def run(self) -> renderers.TreeGrid:
        """One row per event, as it becomes known."""
        events = self._events(self.config.get("duration", None))
        shape = grid.tree if self.config.get("tree", False) else grid.flat
        output = self._dump if self.config.get("dump", False) else grid.no_output
        return renderers.TreeGrid(grid.columns(), shape(events, output))

    def _dump(self, event: Event) -> Any:
        found = programs.of_event(self._source, event)
        if isinstance(found, interfaces.renderers.BaseAbsentValue):
            return found
        process = process_of(event)
        with self.open(f"pid.{process.pid}.{process.generation}.{process.task:#x}.elf") as file:
            file.write(found.data)
            name = file.preferred_filename
        return f"{name} ({found.missing} of {found.pages} pages missing)" if found.missing else name
