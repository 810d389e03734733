"""Gives stock Linux plugins a kernel layer and a symbol table, with nothing provided by the user.

Theory of operation
-------------------
For a Linux plugin Volatility runs its automagic in this order (`automagic.run`, by priority):

0.  `SymbolCacheMagic` indexes the user's symbol directories by banner.
10. `LayerStacker` tries all stackers, by `stack_order`, on the file and then on each layer stacked so far.
    Formats (ELF, LiME, ...) have 10 to 20, `KernelStacker` has 30, the stock Linux stackers 34 and 35 (they
    know only indexed banners and 4-level paging).  `KernelStacker` finds the running kernel, then its symbol
    table: the user's if one is indexed for exactly this banner, else ours, cached or newly made.  The layer
    has the table's URL in its configuration, so it survives the stacker's clones, `--save-config` and
    Timeliner.
35. `TableFinder` sets that table for each `SymbolTableRequirement` beside the layer.
40. The stock symbol finder then has nothing to do.

Our tables stay out of Volatility's index of banners: its entries live for days, and those of files outside
the symbol directories are dropped.

Rules
-----
* What is not found here is left to the stock stackers (32-bit kernels, ARM, kernels without kallsyms).
* `exclusion_list` keeps these classes out of plugins for other systems.  Plugins without a system run them
  on any image; then a missing Linux is no warning.
"""

from __future__ import annotations

import logging
from typing import Any

from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel

from live.core.errors import PseError
from live.core.text import printable
from live.volatility.input import finder, layers, tables
from live.volatility.input.memory import memory_of
from symbols.placement import locate

vollog = logging.getLogger(__name__)

_OTHERS = ["mac", "windows"]
FULL_KEY = "automagic.TableFinder.full-symbols"
join = interfaces.configuration.path_join


class KernelStacker(interfaces.automagic.StackerLayerInterface):  # type: ignore[misc]
    """Stacks the address space of the running Linux kernel on guest-physical memory."""

    stack_order = 30
    exclusion_list = _OTHERS

    @classmethod
    def stack(cls, context: Any, layer_name: str, progress_callback: Any = None) -> Any:
        """The kernel's layer, or None if no kernel is found."""
        layer = context.layers[layer_name]
        if isinstance(layer, (intel.Intel, layers.UnreadableLayer)):
            return None
        what = finder.unreadable(_header(layer))
        if what is not None:
            vollog.warning("%s is %s", printable(_name(context, layer_name)), what)
            name = context.layers.free_layer_name("UnreadableLayer")
            return layers.UnreadableLayer(context, join("UnreadableLayer", name), name)
        try:
            found = finder.find(memory_of(layer, context), progress=progress_callback)
            table, ours = finder.table_url(
                found, full=bool(context.config.get(FULL_KEY)), progress=progress_callback
            )
        except PseError as error:
            _explain(context, layer, error)
            return None
        for note in found.notes:
            vollog.warning("%s", printable(note))
        return _kernel_layer(context, layer_name, found, table, tables.OURS if ours else tables.STOCK)


def _explain(context: Any, layer: Any, error: PseError) -> None:
    """Log why no kernel was found: the stock stackers come next and may fail silently."""
    # Only for a Linux plugin are the Windows stackers left out; for it, the reason is worth a warning.
    for_linux = "WindowsIntelStacker" not in context.config.get("automagic.LayerStacker.stackers", [])
    level = logging.WARNING if for_linux else logging.INFO
    vollog.log(level, "%s (going on with Volatility's own search)", printable(str(error)))
    if any(place.la57 for place in locate(memory_of(layer, context))):
        vollog.log(
            level,
            "this kernel uses 5-level paging, which that search does not know: expect empty lists",
        )


def _kernel_layer(context: Any, layer_name: str, found: finder.Found, table: str, table_class: str) -> Any:
    kernel = found.kernel
    if found.low_end is not None:
        name = context.layers.free_layer_name("RamFileLayer")
        path = join("RamFileLayer", name)
        context.config[join(path, "base_layer")] = layer_name
        context.config[join(path, "low_end")] = found.low_end
        context.layers.add_layer(layers.RamFileLayer(context, path, name))
        layer_name = name
    kind = layers.KERNELS[5 if kernel.la57 else 4]
    name = context.layers.free_layer_name("IntelLayer")
    path = join("KernelStacker", name)
    context.config[join(path, "memory_layer")] = layer_name
    context.config[join(path, "page_map_offset")] = kernel.dtb
    context.config[join(path, "kernel_virtual_offset")] = kernel.kaslr_shift
    context.config[join(path, "kernel_banner")] = kernel.banner
    context.config[join(path, layers.ISF_KEY)] = table
    context.config[join(path, layers.CLASS_KEY)] = table_class
    return kind(context, config_path=path, name=name, metadata={"os": "Linux"})


def _header(layer: Any) -> bytes:
    try:
        return bytes(layer.read(layer.minimum_address, finder.HEADER, pad=True))
    except exceptions.InvalidAddressException:
        return b""


def _name(context: Any, layer_name: str) -> str:
    return str(context.layers[layer_name].config.get("location", layer_name))


class TableFinder(interfaces.automagic.AutomagicInterface):  # type: ignore[misc]
    """Sets the symbol table that `KernelStacker` has chosen for a kernel layer."""

    priority = 35
    exclusion_list = _OTHERS

    def __call__(
        self, context: Any, config_path: str, requirement: Any, progress_callback: Any = None
    ) -> None:
        """Construct the table of every symbol requirement beside a layer that names one."""
        wanted = (requirements.TranslationLayerRequirement, requirements.SymbolTableRequirement)
        found = self.find_requirements(context, config_path, requirement, wanted, shortcut=False)
        beside = {
            interfaces.configuration.parent_path(path): path
            for path, one in found
            if isinstance(one, requirements.TranslationLayerRequirement)
        }
        for path, one in found:
            parent = interfaces.configuration.parent_path(path)
            if not isinstance(one, requirements.SymbolTableRequirement) or not one.unsatisfied(
                context, parent
            ):
                continue
            layer_name = context.config.get(beside.get(parent, ""), None)
            layer = context.layers.get(layer_name) if layer_name else None
            if layer is None:
                continue
            table = layer.config.get(layers.ISF_KEY, None)
            if table is None:
                continue
            context.config[join(path, "class")] = layer.config.get(layers.CLASS_KEY, None) or tables.STOCK
            context.config[join(path, "isf_url")] = table
            context.config[join(path, "symbol_mask")] = layer.address_mask
            one.construct(context, parent)

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """The option ``--full-symbols``."""
        return [
            requirements.BooleanRequirement(
                name="full-symbols",
                description="Make symbol tables with every type of the kernel, not only what plugins use",
                optional=True,
                default=False,
            )
        ]
