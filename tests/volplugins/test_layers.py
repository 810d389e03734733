"""Five-level paging, RAM files with a hole, and input that is no memory."""

import struct

import pytest
from volatility3.framework import contexts, exceptions
from volatility3.framework.layers import physical

from live.volatility.input import finder, layers
from live.volatility.input.memory import FileMemory
from symbols import ram_file
from symbols.ram_file import Run

GIB = 1 << 30


def tables(write, levels, dtb, va, gpa, *, large=False, spare=0x10000):
    """Page tables at ``dtb`` that map ``va`` to ``gpa``; the tables below lie from ``spare`` on."""
    table, shift = dtb, 12 + 9 * (levels - 1)
    last = 21 if large else 12
    while shift > last:
        write(table + (va >> shift & 511) * 8, struct.pack("<Q", spare | 0x63))
        table, spare, shift = spare, spare + 0x1000, shift - 9
    write(table + (va >> shift & 511) * 8, struct.pack("<Q", gpa | (0xE3 if large else 0x63)))


@pytest.mark.parametrize(
    ("kind", "levels", "base"),
    [
        (layers.LinuxIntel48, 4, 0xFFFF_8880_0000_0000),
        (layers.LinuxIntel57, 5, 0xFF11_0000_0000_0000),
    ],
)
def test_both_paging_modes_translate(kind, levels, base):
    ram = bytearray(16 << 20)

    def write(at, data):
        ram[at : at + len(data)] = data

    tables(write, levels, 0x1000, base + 0x5000, 0x7000)
    tables(write, levels, 0x1000, 0x7FFF_1234_5000, 0x9000, spare=0x20000)
    tables(write, levels, 0x2000, 0xFFFF_FFFF_8100_0000, 0x800000, large=True, spare=0x30000)
    write(0x7123, b"kernel data")
    write(0x9FF0, b"user data")
    write(0x812345, b"kernel text")
    context = contexts.Context()
    context.add_layer(physical.BufferDataLayer(context, "", "ram", bytes(ram)))

    def space(dtb):
        name = f"space{dtb}"
        context.config[f"{name}.memory_layer"] = "ram"
        context.config[f"{name}.page_map_offset"] = dtb
        layer = kind(context, name, name)
        context.add_layer(layer)
        return layer

    assert space(0x1000).read(base + 0x5123, 11) == b"kernel data"
    assert context.layers["space4096"].read(0x7FFF_1234_5FF0, 9) == b"user data"
    assert space(0x2000).read(0xFFFF_FFFF_8101_2345, 11) == b"kernel text"
    with pytest.raises(exceptions.PagedInvalidAddressException):
        context.layers["space4096"].read(base + 0x6000, 1)


@pytest.mark.parametrize("low", ram_file.LOW_ENDS)
def test_a_ram_file_is_laid_out_by_its_page_tables(tmp_path, low):
    """The tables lie above the hole; each wrong layout finds some of them missing or full of other data."""
    size = low + (1 << 30)
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(size)

        def write(gpa, data):
            file.seek(gpa if gpa < low else gpa - (1 << 32) + low)
            file.write(data)

        # Two tables far apart, one below the hole, and ordinary data where other layouts would look.
        tables(write, 4, 0x200000, 0xFFFF_8880_0000_0000, 0x7000, spare=(1 << 32) + 0x3000)
        tables(write, 4, 0x200000, 0xFFFF_C880_0000_0000, 0x7000, spare=low - 0x8000)
        tables(write, 4, 0x200000, 0xFFFF_E880_0000_0000, 0x7000, spare=(1 << 32) + size - low - 0x9000)
    import mmap

    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    fits = [(ram_file.fit(FileMemory(view, runs), 0x200000, False), runs) for runs in ram_file.layouts(size)]
    best = min(fits, key=lambda one: (one[0].bad, -one[0].good))
    assert best[0] == ram_file.Fit(bad=0, good=10)
    assert best[1] == ram_file.split(size, low)
    assert sum(one == best[0] for one, _ in fits) == 1


def test_layouts_of_a_file():
    assert ram_file.layouts(GIB) == [(Run(0, 0, GIB),)]
    assert ram_file.split(4 * GIB, 2 * GIB) == (Run(0, 0, 2 * GIB), Run(4 * GIB, 2 * GIB, 2 * GIB))
    assert len(ram_file.layouts(4 * GIB)) == 1 + len(ram_file.LOW_ENDS)
    assert ram_file.describe(ram_file.layouts(GIB)[0]) is None
    assert "2048 MiB below and 2048 MiB above" in ram_file.describe(ram_file.split(4 * GIB, 2 * GIB))


def test_the_ram_file_layer_puts_the_hole_back(tmp_path, monkeypatch):
    monkeypatch.setattr(ram_file, "FOUR_GIB", 0x10000)
    (tmp_path / "ram").write_bytes(b"l" * 0x2000 + b"h" * 0x1000)
    context = contexts.Context()
    context.config["base.location"] = (tmp_path / "ram").as_uri()
    context.add_layer(physical.FileLayer(context, "base", "FileLayer"))
    context.config["top.base_layer"] = "FileLayer"
    context.config["top.low_end"] = 0x2000
    layer = layers.RamFileLayer(context, "top", "top")
    assert layer.read(0x1FFF, 1) == b"l"
    assert layer.read(0x10000, 0x1000) == b"h" * 0x1000
    assert layer.maximum_address == 0x10FFF
    assert not layer.is_valid(0x2000)
    with pytest.raises(exceptions.InvalidAddressException):
        layer.read(0x2000, 1)


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"KDUMP   \x06\0\0\0", "kdump-compressed"),
        (b"makedumpfile\0\0\0\0", "flattened"),
        (b"LibvirtQemudSave", "domain save file"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_input_that_is_no_memory_is_named(header, word):
    assert word in finder.unreadable(header + bytes(32))


def test_memory_is_not_mistaken_for_other_input():
    assert finder.unreadable(bytes(32)) is None
    assert finder.unreadable(b"\x7fELF" + bytes(32)) is None
    assert finder.unreadable(b"EMiL" + bytes(32)) is None


def test_an_unreadable_layer_has_nothing():
    context = contexts.Context()
    layer = layers.UnreadableLayer(context, "none", "none")
    assert not layer.is_valid(0)
    with pytest.raises(exceptions.InvalidAddressException):
        layer.read(0, 1)
