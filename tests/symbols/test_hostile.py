"""Hostile input: whatever the bytes are, one of our errors or a table, soon and in bounded memory.

``python3 -m tests.symbols.test_hostile SECONDS [FILE]`` goes on for longer, also on a real kernel or image.
"""

import random
import resource
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from live.core.errors import PseError, SymbolsMissing
from symbols import kallsyms
from symbols.btf import Btf
from symbols.guest import decode, search
from symbols.images import image_of
from symbols.isf import Types
from symbols.kernel_image import is_kernel, kernel_image
from symbols.table import KernelTable

from .build import MIB, Layout, Plan, Ram, elf, install, kallsyms_blob, kernel_btf, symbols_of
from .build import image_of as kernel_bytes
from .test_sources import PACKERS, bzimage, pe

FEW = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
SMALL = Plan(fillers=1100)
BTF = kernel_btf().blob()
KALLSYMS = kallsyms_blob(symbols_of(SMALL), SMALL.layout, SMALL.va + 0x200000)


def survives(work, *arguments):
    """Runs it; our own errors are an answer, anything else is a failure.  Returns whether it succeeded."""
    try:
        work(*arguments)
    except PseError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        return False
    return True


def everything_of(blob):
    """Describes every type of a blob and writes it down."""
    types = Types(Btf(blob))
    types.define(range(1, len(types.btf)))
    for number in range(len(types.btf)):
        types.describe(number)


mutations = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)


def mutated(data, changes):
    out = bytearray(data)
    for place, value in changes:
        out[place % len(out)] = value
    return bytes(out)


@pytest.mark.slow
@FEW
@given(mutations)
def test_btf_with_changed_bytes(changes):
    survives(everything_of, mutated(BTF, changes))


@pytest.mark.slow
@FEW
@given(st.integers(0, len(BTF)))
def test_btf_cut_short(length):
    assert survives(everything_of, BTF[:length]) is (length == len(BTF))


@pytest.mark.slow
@FEW
@given(
    st.lists(st.tuples(st.integers(0, 31), st.integers(0, 40), st.integers(0, 12)), max_size=40), st.data()
)
def test_btf_of_nonsense_types(records, data):
    """Every kind refers to anything, itself included."""
    from .build import BtfBuilder

    b = BtfBuilder()
    each = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
    fixed = {1: 1, 3: 3, 14: 1, 17: 1}
    for kind, target, parts in records:
        count = fixed.get(kind, 0) + each.get(kind, 0) * parts
        words = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
        b.add(
            kind, "x" * (parts % 3), target, *words, parts=parts if kind in each else 0, flag=bool(parts & 1)
        )
    survives(everything_of, b.blob())


@pytest.mark.slow
@settings(FEW, max_examples=60)
@given(mutations)
def test_kallsyms_with_changed_bytes(changes):
    survives(kallsyms.decode, bytes(4096) + mutated(KALLSYMS, changes), SMALL.va + 0x1FF000, None)


@pytest.mark.slow
@settings(FEW, max_examples=60)
@given(st.integers(0, len(KALLSYMS) - 1))
def test_kallsyms_cut_short(length):
    survives(kallsyms.decode, bytes(4096) + KALLSYMS[:length], SMALL.va + 0x1FF000, None)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(), Layout(new_order=True, encoding="place", align=4)])
def test_kernels_with_flipped_bits(layout):
    chance = random.Random(1)
    plan = Plan(fillers=1100, layout=layout)
    ram = Ram(24 * MIB)
    install(ram, plan)
    sound = bytes(ram.data)
    # Where the kernel keeps what we read: tables, page tables, init_task, and low memory.
    places = [(0, MIB + 0x3000), (plan.text + 0x100000, 0x16000), (plan.text + 0x200000, 0x20000)]
    places.append((plan.text + 0x400000, 0x1000))
    found = 0
    for _ in range(150):
        changed = {}
        for _ in range(chance.choice((1, 4, 64))):
            start, length = chance.choice(places)
            at = start + chance.randrange(length)
            changed.setdefault(at, sound[at])
            ram.data[at] ^= 1 << chance.randrange(8)
        found += survives(lambda: search(ram, None).decoded[0].isf(full=True))
        for at, value in changed.items():
            ram.data[at] = value
    assert bytes(ram.data) == sound
    assert found > 15


def containers():
    vmlinux = elf(bytes(64) + BTF + KALLSYMS)
    yield "vmlinux", vmlinux
    yield "core", elf(bytes(8192), core=True)
    yield "unified", pe([(b".linux\0\0", bzimage(PACKERS["gzip"](vmlinux)))])
    for name, packer in PACKERS.items():
        yield name, bzimage(packer(vmlinux))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content"), list(containers()), ids=[name for name, _ in containers()])
def test_thousands_of_damaged_containers(name, content):
    chance = random.Random(name)
    for _ in range(400):
        data = bytearray(content)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice((1, 3, 30))):
            if data:
                near = chance.choice((64, 0x300, 0x1200, len(data)))
                data[chance.randrange(min(near, len(data)))] = chance.randrange(256)
        survives(opened, bytes(data))


def opened(data):
    view = memoryview(data)
    if is_kernel(view):
        kernel = kernel_image(view, "file")
        decode(kernel.data, kernel.va, 0, None).isf(full=True)
    else:
        image = image_of(view, "file")
        for segment in image.segments[:100]:
            image.read(segment.start, 1)
        search(image, None)


def test_many_false_candidates_are_bounded():
    """Memory full of what looks like anchors: page tables, kallsyms digits, BTF headers."""
    digits = b"".join(b"%d\0" % n for n in range(10))
    ram = Ram(16 * MIB)
    for page in range(0, 16 * MIB, 4096):
        ram.write(page, digits * 20 + b"\x9f\xeb\x01\0\x18\0\0\0" * 20)
        ram.word(page + 8 * 510, (page ^ 0x1000) | 0x63)
        ram.word(page + 8 * 511, (page ^ 0x2000) | 0x67)
    started = time.process_time()
    survives(search, ram, None)
    survives(kallsyms.decode, bytes(ram.data), Plan().va, None)
    assert time.process_time() - started < 60  # it is a hang that this is about, not speed


def test_huge_counts_need_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for value in (0xFF, 0x7F):
        for at in range(24):
            blob = bytearray(BTF)
            blob[at] = value
            survives(everything_of, bytes(blob))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 << 10  # KiB


def main(seconds: float, path: str | None = None) -> None:
    """Random damage to a kernel image (default: a synthetic one) until the time is up."""
    if path is None:
        data, va = kernel_bytes(Plan()), Plan().va
    else:
        from pathlib import Path

        from symbols.images import open_file

        kernel = kernel_image(open_file(Path(path)), path)
        data, va = kernel.data, kernel.va
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    image = bytearray(data)
    ends = time.monotonic() + seconds
    rounds = found = 0
    slowest = 0.0
    while time.monotonic() < ends:
        changed = {}
        for _ in range(chance.choice((1, 10, 1000, 100000))):
            at = chance.randrange(len(image))
            changed.setdefault(at, image[at])
            image[at] = chance.randrange(256)
        started = time.process_time()
        ok = survives(_decoded, bytes(image), va)
        slowest = max(slowest, time.process_time() - started)
        rounds += 1
        found += ok
        for at, value in changed.items():
            image[at] = value
    print(
        f"{rounds} damaged images, {found} still gave a table, slowest {slowest:.1f} s of CPU, no other error"
    )


def _decoded(image: bytes, va: int) -> None:
    table: KernelTable = decode(image, va, 0, None)
    table.isf(full=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:3])


def test_a_name_without_an_end_is_refused():
    from .build import BtfBuilder

    b = BtfBuilder()
    for _ in range(3):
        b.struct("x" * 5000, 8)
    with pytest.raises(SymbolsMissing, match="longer than 1024 bytes"):
        everything_of(b.blob())


def test_types_within_types_without_end_are_refused():
    from .build import BtfBuilder

    b = BtfBuilder()
    inner = b.integer("int", 4)
    for _ in range(1200):
        inner = b.struct("", 4, ("x", inner, 0))
    b.struct("task_struct", 4, ("x", inner, 0))
    with pytest.raises(SymbolsMissing, match="nested too deeply"):
        everything_of(b.blob())
