"""Kernel files and memory images: every packing, every container, and what is refused."""

import bz2
import gzip
import lzma
import struct

import lz4.block
import pytest
import zstandard

from live.core.errors import MemoryFault, NoKernelFound, NotPermitted, TargetError
from live.core.memory import Run
from live.testing import MemoryContract
from symbols import sources
from symbols.cache import Cache
from symbols.images import Image
from symbols.ram_file import FOUR_GIB
from symbols.sources import build, decode_source, open_source

from .build import LINK_TEXT, MIB, Plan, Ram, elf, image_of, install

LINKED = Plan(shift=0)


def lz4_legacy(data):
    out = bytearray(b"\x02\x21\x4c\x18")
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return bytes(out)


PACKERS = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, preset=0),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=0),
    "bzip2": bz2.compress,
    "lz4": lz4_legacy,
    "zstd": zstandard.compress,
    "zstd without a size": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    "nothing": lambda data: data,
}


def bzimage(payload, *, tail=b""):
    """A setup header with one sector count, and a payload behind a little code."""
    payload += tail
    head = bytearray(5 * 512)
    head[0:2] = b"MZ"
    head[0x1F1] = 4
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    struct.pack_into("<II", head, 0x248, 256, len(payload))
    return bytes(head) + bytes(256) + payload


def pe(sections):
    """A minimal PE image with these sections."""
    head = bytearray(b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40))
    head += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 0xF0, 0x22)
    head += struct.pack("<H", 0x20B).ljust(0xF0, b"\0")
    struct.pack_into("<II", head, 0x58 + 32, 0x1000, 0x200)
    struct.pack_into("<II", head, 0x58 + 56, 0x1000000, 0x1000)
    body, at = bytearray(), 0x1000
    for name, content in sections:
        raw = content.ljust(-(-len(content) // 512) * 512, b"\0")
        head += struct.pack(
            "<8sIIIIIIHHI", name, len(content), at, len(raw), 0x1000 + len(body), 0, 0, 0, 0, 0x40000040
        )
        body += raw
        at += -(-len(raw) // 0x1000) * 0x1000
    return bytes(head).ljust(0x1000, b"\0") + bytes(body)


@pytest.fixture(scope="module")
def vmlinux():
    return elf(image_of(LINKED))


@pytest.fixture(scope="module")
def expected(vmlinux, tmp_path_factory):
    path = tmp_path_factory.mktemp("kernel") / "vmlinux"
    path.write_bytes(vmlinux)
    return decode_source(open_source(path))


@pytest.fixture
def written(tmp_path):
    def write(data, name="file"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
@pytest.mark.parametrize("tail", [b"", struct.pack("<I", 6 * MIB)], ids=["bare", "with its size"])
def test_each_packing(packer, tail, vmlinux, expected, written):
    source = open_source(written(bzimage(packer(vmlinux), tail=tail)))
    assert source.content.va == LINK_TEXT
    assert source.content.data == image_of(LINKED)
    decoded = decode_source(source)
    assert decoded.table.isf(full=True) == expected.table.isf(full=True)
    assert decoded.landmarks == expected.landmarks


def test_unified_kernel_image(vmlinux, written):
    linux = bzimage(PACKERS["gzip"](vmlinux))
    image = pe([(b".osrel\0\0", b"ID=test"), (b".linux\0\0", linux), (b".initrd\0", bytes(3000))])
    assert open_source(written(image)).content.data == image_of(LINKED)


def test_kernel_file_and_ram_give_one_table(vmlinux, written, tmp_path):
    ram = Ram(48 * MIB)
    install(ram, Plan(la57=True))
    cache = Cache(tmp_path / "cache")
    first = build(written(bzimage(PACKERS["xz"](vmlinux)), "vmlinuz"), cache)
    content = first.read_bytes()
    first.unlink()
    second = build(written(bytes(ram.data), "ram"), cache)
    assert second == first
    assert second.read_bytes() == content
    assert build(written(vmlinux, "vmlinux"), cache) == first


def test_elf_core_and_lime(written):
    ram = Ram(48 * MIB)
    plan = Plan()
    install(ram, plan)
    core = open_source(written(elf(bytes(ram.data), va=0, core=True), "core"))
    assert core.kind == "an ELF core"
    low, high = bytes(ram.data[: 2 * MIB]), bytes(ram.data[8 * MIB :])
    lime = struct.pack("<IIQQQ", 0x4C694D45, 1, 0, 2 * MIB - 1, 0) + low
    lime += struct.pack("<IIQQQ", 0x4C694D45, 1, 8 * MIB, 48 * MIB - 1, 0) + high
    pieces = open_source(written(lime, "lime"))
    assert pieces.kind == "a LiME image"
    assert [(s.start, s.length) for s in pieces.content.segments] == [(0, 2 * MIB), (8 * MIB, 40 * MIB)]
    for source in (core, pieces):
        running = decode_source(source).running
        assert (running.text, running.kaslr_shift) == (plan.text, plan.shift)


@pytest.mark.parametrize(
    ("low", "what"), [(2, "hole from 2 to 4"), (3, "hole from 3 to 4")], ids=["q35", "i440fx"]
)
def test_raw_file_of_a_split_machine(low, what, tmp_path):
    path = tmp_path / "ram"
    plan = Plan(text=FOUR_GIB + 16 * MIB, top_tables=FOUR_GIB + MIB)
    ram = Ram(48 * MIB, start=FOUR_GIB)
    install(ram, Plan(text=plan.text, top_tables=plan.top_tables, trampoline=0))
    first = Ram(MIB)
    from .build import link

    first.word(plan.trampoline + 8 * 511, plan.gpa(link("level3_kernel_pgt")) | 0x67)
    with path.open("wb") as file:
        file.write(first.data)
        file.seek(low << 30)
        file.write(ram.data)
        file.truncate((low << 30) + (2 << 30))
    source = open_source(path)
    assert what in source.kind
    assert decode_source(source).running.text == plan.text


class TestImage(MemoryContract):
    @pytest.fixture(params=["in one", "in pieces"])
    def memory(self, request):
        view = memoryview(bytes(range(256)) * 512)
        whole = [Run(0, 0, 0x20000)]
        pieces = [Run(0x1000, 0, 0x8000), Run(0x9000, 0x10000, 0x8000), Run(1 << 32, 0x18000, 0x10000)]
        return Image(view, whole if request.param == "in one" else pieces, "test")


def test_views_are_not_copied_and_pieces_are_joined():
    view = memoryview(bytes(range(256)))
    image = Image(view, [Run(0x1000, 0, 16), Run(0x1010, 100, 16), Run(0x5000, 200, 500)], "test")
    assert isinstance(image.read(0x1002, 4), memoryview)
    assert image.read(0x1008, 16) == bytes(range(8, 16)) + bytes(range(100, 108))
    assert [(s.start, s.length) for s in image.segments] == [(0x1000, 16), (0x1010, 16), (0x5000, 56)]
    for gpa, length, address in ((0, 1, 0), (0x101F, 2, 0x1020), (0x5030, 9, 0x5038)):
        with pytest.raises(MemoryFault) as caught:
            image.read(gpa, length)
        assert caught.value.address == address


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"KDUMP   " + bytes(4096), "kdump-compressed"),
        (b"makedumpfile\0" + bytes(4096), "flattened"),
        (b"QFI\xfb" + bytes(4096), "qcow2"),
        (b"\x7fELF" + bytes(4096), "damaged ELF|another machine"),
        (b"MZ" + bytes(4096), "damaged PE|without a Linux kernel"),
        (pe([(b".text\0\0\0", b"code")]), "without a Linux kernel"),
        (bzimage(b"\x89LZO" + bytes(64)), "lzo"),
        (bzimage(b"nonsense"), "unknown way"),
        (bzimage(b"\x1f\x8b" + bytes(64)), "gzip kernel .* does not unpack"),
        (bzimage(lz4_legacy(b"abc")[:8]), "lz4 kernel .* does not unpack"),
        (bzimage(zstandard.compress(bytes(100000)))[:-20], "ends before its compressed kernel"),
        (bzimage(gzip.compress(b"\x7fELF"[:3])), "damaged ELF"),
        (elf(bytes(4096), va=0x400000), "no Linux kernel"),
    ],
)
def test_refusals_say_what_to_do(content, what, written):
    with pytest.raises(TargetError, match=what):
        open_source(written(content))


def test_missing_file(tmp_path):
    with pytest.raises(TargetError, match="cannot be opened"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(TargetError, match="cannot be opened"):
        open_source(tmp_path)


def test_forbidden_file(written, monkeypatch):
    path = written(b"x")

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(NotPermitted, match="may not be read"):
        open_source(path)


def test_bomb_is_bounded(written, monkeypatch):
    monkeypatch.setattr("symbols.kernel_image.MAX_KERNEL", 1 << 20)
    with pytest.raises(TargetError, match="does not unpack"):
        open_source(written(bzimage(gzip.compress(bytes(8 << 20)))))


def test_noise_is_no_kernel(written):
    with pytest.raises(NoKernelFound):
        sources.isf(written(bytes(range(256)) * 4096))
