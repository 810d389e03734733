"""Stock plugins on a recording, at any event: ``vol -f run.pse --at 'exec:*/nc' linux.lsof``.

Theory of operation
-------------------
`RecordingStacker` runs before all other stackers.  It recognises a recording by its header and chooses the
event that ``--at`` names (else the last keyframe).  It stacks `RecordingLayer`, guest-physical memory at that
event, and on it the kernel's address space.  There is no search: kernel and symbol table (`SymbolsHandler`)
are in the recording.

At a keyframe all memory is known.  At other events a plugin works as long as it reads recorded pages; the
first page that was not recorded ends it with a `LayerException`.  An `InvalidAddressException` would not do:
plugins take it for memory that the guest does not have, and would print an empty list.  ``--last-known``
gives the last recorded content instead, with a warning.
"""

from __future__ import annotations

import io
import logging
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import physical, resources

from live.core.errors import MemoryFault, PseError
from live.core.text import printable
from live.linux.record import KernelRecord
from live.recording.file import Recording, Step
from live.recording.filters import find_event
from live.recording.opening import is_recording, open_recording
from live.recording.past_memory import UNRECORDED, StateMemory, frame_of
from live.volatility.input import layers, tables

vollog = logging.getLogger(__name__)

SCHEME = "pse-symbols"
_AT, _LAST_KNOWN = "at", "last-known"
join = interfaces.configuration.path_join


class RecordingOptions(interfaces.automagic.AutomagicInterface):  # type: ignore[misc]
    """Adds the options that choose the moment of a recording."""

    priority = 1
    exclusion_list = ["mac", "windows"]  # noqa: RUF012 -- Volatility's attribute

    def __call__(
        self, context: Any, config_path: str, requirement: Any, progress_callback: Any = None
    ) -> None:
        """Do nothing: `RecordingStacker` reads the options."""

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """``--at`` and ``--last-known``."""
        return [
            requirements.StringRequirement(
                name=_AT,
                description="Of a recording: memory at this event, by number, first, last, or KIND:PATTERN "
                "such as exec:*/nc (default: the last keyframe)",
                optional=True,
            ),
            requirements.BooleanRequirement(
                name=_LAST_KNOWN,
                description="Of a recording: where memory was not recorded at the event, as it was last seen",
                optional=True,
                default=False,
            ),
        ]


class RecordingLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Guest-physical memory at one step of a recording."""

    def __init__(
        self, context: Any, config_path: str, name: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Open the recording.  Raises `LayerException` if it is damaged."""
        super().__init__(context, config_path, name, metadata)
        try:
            recording = open_recording(_path(self.config["location"]))
            step = recording.step(int(self.config["step"]))
            self.memory = StateMemory(recording, step, last_known=bool(self.config.get("last_known", False)))
        except PseError as error:
            raise exceptions.LayerException(name, printable(str(error))) from error

    @property
    def minimum_address(self) -> int:
        """The lowest gpa of RAM."""
        return int(self.memory.segments[0].start)

    @property
    def maximum_address(self) -> int:
        """The highest gpa of RAM."""
        return int(self.memory.segments[-1].end) - 1

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Whether these bytes could be read live.  Raises `LayerException` if they were not recorded."""
        try:
            self.memory.read(offset, length)
        except MemoryFault as fault:
            self._refuse(fault)
            return False
        return True

    def _refuse(self, fault: MemoryFault) -> None:
        if fault.reason == UNRECORDED:
            raise exceptions.LayerException(
                self.name,
                f"gpa {fault.address:#x} was not recorded at this event, and the plugin needs it: choose an "
                "event with a keyframe, or --last-known",
            ) from fault

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """The bytes at a gpa.

        Raises `LayerException` for pages that were not recorded.  Pages that are not RAM or could not be read
        live are zeros with ``pad``, else raise `InvalidAddressException`.
        """
        try:
            return self.memory.read(offset, length)
        except MemoryFault as fault:
            self._refuse(fault)
            if not pad:
                raise exceptions.InvalidAddressException(self.name, fault.address, str(fault)) from fault
        data = bytearray(length)
        at = offset
        while at < offset + length:
            take = min(4096 - at % 4096, offset + length - at)
            try:
                data[at - offset : at - offset + take] = self.memory.read(at, take)
            except MemoryFault as fault:
                self._refuse(fault)
            at += take
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Raises `InvalidAddressException`."""
        raise exceptions.InvalidAddressException(self.name, offset, "a recording cannot be written")

    def destroy(self) -> None:
        """Do nothing: the file is closed when the last reference to the memory is gone."""

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """Location of the recording, and the step."""
        return [
            requirements.StringRequirement(name="location", description="URL of the recording"),
            requirements.IntRequirement(name="step", description="Number of the step"),
            requirements.BooleanRequirement(
                name="last_known", description="Give older contents of pages", optional=True, default=False
            ),
        ]


class RecordingStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Stacks the memory and the kernel of a recording, at the event of ``--at``."""

    stack_order = 2
    exclusion_list = ["mac", "windows"]  # noqa: RUF012 -- Volatility's attribute

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        """The kernel's layer; None if the file is no recording."""
        layer = context.layers[layer_name]
        if not isinstance(layer, physical.FileLayer) or not is_recording(layer.read(0, 100, pad=True)):
            return None
        location = str(layer.config["location"])
        at = context.config.get(join("automagic", "RecordingOptions", _AT), None)
        last_known = bool(context.config.get(join("automagic", "RecordingOptions", _LAST_KNOWN), False))
        try:
            with open_recording(_path(location)) as recording:
                step = choose_step(recording, at)
                _announce(recording, step, last_known)
                return _kernel_layer(context, location, recording, step, last_known)
        except PseError as error:
            # Otherwise the other stackers would search the database for a kernel and hide this error.
            vollog.error("%s", printable(str(error)))
            name = context.layers.free_layer_name("UnreadableLayer")
            return layers.UnreadableLayer(context, join("UnreadableLayer", name), name)


def choose_step(recording: Recording, at: str | None) -> Step:
    """The step of the event that ``at`` names; without ``at`` the last keyframe, or else the last step.

    Raises `TargetError`.
    """
    if at:
        return recording.step(find_event(recording, at).step)
    chosen = None
    for step in recording.steps():
        if chosen is None or chosen.kind != "frame" or (step.kind == "frame" and step.error is None):
            chosen = step
    if chosen is None:
        raise recording.damaged("it has no steps")
    return chosen


def _announce(recording: Recording, step: Step, last_known: bool) -> None:
    frame = frame_of(recording, step)
    if frame is None and last_known:
        vollog.warning(
            "not all memory is recorded at step %d; what is not is shown as it was last seen", step.id
        )
    elif frame is None:
        vollog.warning(
            "only the memory that was read to see the event is recorded at step %d; a plugin that needs more "
            "ends with an error",
            step.id,
        )
    elif not frame.still:
        vollog.warning("the guest ran on while this keyframe was taken: not all pages are of one moment")


def _kernel_layer(context: Any, location: str, recording: Recording, step: Step, last_known: bool) -> Any:
    head = recording.header
    memory = context.layers.free_layer_name("RecordingLayer")
    path = join("RecordingLayer", memory)
    context.config[join(path, "location")] = location
    context.config[join(path, "step")] = step.id
    context.config[join(path, "last_known")] = last_known
    context.layers.add_layer(RecordingLayer(context, path, memory))
    try:
        kernel = KernelRecord.decode(head.kernel)
    except ValueError as error:
        raise recording.damaged(str(error)) from error
    kind = layers.KERNELS[kernel.place.levels]
    name = context.layers.free_layer_name("IntelLayer")
    path = join("RecordingStacker", name)
    context.config[join(path, "memory_layer")] = memory
    context.config[join(path, "page_map_offset")] = kernel.place.root
    context.config[join(path, "kernel_virtual_offset")] = kernel.place.kaslr_shift
    context.config[join(path, "kernel_banner")] = kernel.banner
    context.config[join(path, layers.ISF_KEY)] = f"{SCHEME}:{urllib.parse.urlparse(location).path}"
    context.config[join(path, layers.CLASS_KEY)] = tables.OURS
    return kind(context, config_path=path, name=name, metadata={"os": "Linux"})


class SymbolsHandler(resources.VolatilityHandler):  # type: ignore[misc]
    """Opens ``pse-symbols:PATH``: the symbol table in the recording at PATH."""

    @classmethod
    def non_cached_schemes(cls) -> list[str]:
        """Ours: the table must not outlive a recording that is replaced."""
        return [SCHEME]

    @staticmethod
    def default_open(req: urllib.request.Request) -> io.BytesIO | None:
        """The ISF text; None for other URLs.  Raises `URLError`."""
        if req.type != SCHEME:
            return None
        try:
            with open_recording(_path(req.full_url)) as recording:
                return io.BytesIO(recording.symbols())
        except PseError as error:
            raise urllib.error.URLError(printable(str(error))) from error


def _path(url: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(url).path))
