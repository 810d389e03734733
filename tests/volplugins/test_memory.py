"""Readers over Volatility's layers: the mapped way and the layer's own way say the same."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.framework import contexts
from volatility3.framework.layers import elf, lime, physical

from live.core.errors import MemoryFault
from live.core.memory import Segment
from live.volatility.input.memory import FileMemory, LayerMemory, memory_of
from symbols.ram_file import Run

PAGE = bytes(range(256)) * 16


def opened(path):
    context = contexts.Context()
    context.config["base.location"] = path.as_uri()
    context.add_layer(physical.FileLayer(context, "base", "FileLayer"))
    return context


def on_top(context, layer_class):
    context.config["top.base_layer"] = "FileLayer"
    return layer_class(context, "top", "top")


def elf_core(runs):
    """An ELF core with PT_LOAD segments (gpa, bytes)."""
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(runs), 0, 0, 0
    )
    at = 64 + 56 * len(runs) + 24  # not aligned, as QEMU's are not
    table = data = b""
    for gpa, content in runs:
        table += struct.pack("<IIQQQQQQ", 1, 0, at + len(data), 0, gpa, len(content), len(content), 0)
        data += content
    return header + table + bytes(24) + data


def lime_file(runs):
    """A LiME image of ranges (gpa, bytes)."""
    return b"".join(
        struct.pack("<IIQQQ", 0x4C694D45, 1, gpa, gpa + len(content) - 1, 0) + content
        for gpa, content in runs
    )


def test_a_raw_file_is_one_flat_view(tmp_path):
    (tmp_path / "raw").write_bytes(PAGE * 3)
    context = opened(tmp_path / "raw")
    memory = memory_of(context.layers["FileLayer"], context)
    assert isinstance(memory, FileMemory)
    assert memory.segments == (Segment(start=0, length=3 * 4096),)
    assert memory.flat == PAGE * 3
    assert memory.read(4095, 3) == b"\xff\x00\x01"
    with pytest.raises(MemoryFault) as fault:
        memory.read(3 * 4096 - 1, 2)
    assert fault.value.address == 3 * 4096


@pytest.mark.parametrize(("write", "layer_class"), [(elf_core, elf.Elf64Layer), (lime_file, lime.LimeLayer)])
def test_formats_are_runs_of_their_file(tmp_path, write, layer_class):
    runs = [(0, b"a" * 4096), (0x3000, b"b" * 8192), (1 << 32, b"c" * 4096)]
    (tmp_path / "image").write_bytes(write(runs))
    context = opened(tmp_path / "image")
    layer = on_top(context, layer_class)
    mapped, copied = memory_of(layer, context), LayerMemory(layer)
    assert isinstance(mapped, FileMemory)
    assert mapped.segments == copied.segments == tuple(Segment(start=at, length=len(b)) for at, b in runs)
    assert mapped.flat is None  # a hole would have to read as zeros
    for gpa, content in runs:
        assert mapped.read(gpa, len(content)) == copied.read(gpa, len(content)) == content
    for memory in (mapped, copied):
        for gpa, length, first in (
            (0x1000, 1, 0x1000),
            (0xFFF, 2, 0x1000),
            (0x5000, 1, 0x5000),
            (1 << 40, 8, 1 << 40),
        ):
            with pytest.raises(MemoryFault) as fault:
                memory.read(gpa, length)
            assert fault.value.address == first


def test_firmware_in_an_elf_core_is_no_ram(tmp_path):
    (tmp_path / "image").write_bytes(elf_core([(0, PAGE * 2), (0xFFFC0000, PAGE)]))
    context = opened(tmp_path / "image")
    memory = memory_of(on_top(context, elf.Elf64Layer), context)
    assert memory.segments == (Segment(start=0, length=8192),)
    assert memory.flat == PAGE * 2


def test_a_truncated_core_ends_where_the_file_ends(tmp_path):
    (tmp_path / "image").write_bytes(elf_core([(0, PAGE * 4)])[:-4097])
    context = opened(tmp_path / "image")
    memory = memory_of(on_top(context, elf.Elf64Layer), context)
    assert memory.segments == (Segment(start=0, length=3 * 4096 - 1),)


def test_compressed_files_are_read_through_the_layer(tmp_path):
    import gzip

    (tmp_path / "raw.gz").write_bytes(gzip.compress(PAGE * 2))
    context = opened(tmp_path / "raw.gz")
    memory = memory_of(context.layers["FileLayer"], context)
    assert isinstance(memory, LayerMemory)
    assert memory.segments == (Segment(start=0, length=8192),)
    assert memory.read(4096, 4096) == PAGE


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 80), st.integers(0, 32)), max_size=8))
def test_any_runs_give_ascending_segments_inside_the_file(runs):
    memory = FileMemory(memoryview(bytes(64)), [Run(*run) for run in runs])
    end = -1
    for run in memory.runs:
        assert run.start >= end
        assert run.length > 0
        assert run.offset + run.length <= 64
        assert len(memory.read(run.start, run.length)) == run.length
        end = run.start + run.length
