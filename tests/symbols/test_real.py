"""Real kernels, booted by the lab: what we find in their RAM against what they say of themselves."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from volatility3 import schemas

from symbols.cache import Cache
from symbols.guest import find_kernel, symbol_table
from symbols.sources import decode_source, open_source
from tests.guest import kernels
from tests.guest.spec import GuestSpec

from .build import LINK_TEXT

FAST = [name for name in kernels.KERNELS if not name.endswith("-rt")]
"""PREEMPT_RT handles the serial port in a thread: kallsyms take minutes to get out of it."""
SPECS = [
    *(GuestSpec(kernel=name) for name in FAST),
    *(GuestSpec(kernel=name, cpu_model="max", kaslr=False, memory=1024) for name in FAST),
    GuestSpec(kernel="6.1", cpu_model="max", memory=4096),
    GuestSpec(kernel="7.2", memory=4096),
]


def name_of(spec):
    return f"{spec.kernel}-{spec.memory}M-{spec.cpu_model}-{'kaslr' if spec.kaslr else 'nokaslr'}"


def shallow_or_deep(spec):
    """One spec of each kernel is tested always, the others with `make deep`."""
    first = next(one for one in SPECS if one.kernel == spec.kernel)
    return spec if spec is first else pytest.param(spec, marks=pytest.mark.deep)


def own_symbols(text):
    """/proc/kallsyms without what modules, BPF and ftrace added: (address, kind, name)."""
    result = []
    for line in text.splitlines():
        address, kind, name, *rest = line.split()
        if not rest:
            result.append((int(address, 16), kind, name))
    return result


def sample(document):
    """One in twenty types and one in two hundred symbols, all kinds of each: the validator needs a minute
    for all.
    """
    for kind, step in (("user_types", 20), ("symbols", 200)):
        document[kind] = dict(list(document[kind].items())[::step])
    return document


@pytest.mark.guest
@pytest.mark.parametrize("spec", [shallow_or_deep(spec) for spec in SPECS], ids=name_of)
def test_kernel_in_ram(spec, boot, tmp_path):
    guest = boot(spec)
    guest.run(["sh", "-c", "echo 0 > /proc/sys/kernel/kptr_restrict"])
    packed = guest.run(["gzip", "-1", "-c", "/proc/kallsyms"], timeout=120).data
    kallsyms = own_symbols(gzip.decompress(packed).decode())
    at = {name: address for address, _, name in kallsyms}
    version = guest.run(["cat", "/proc/version"]).output
    flags = guest.run(["grep", "-m1", "flags", "/proc/cpuinfo"]).output.split()

    guest.stop()
    source = open_source(guest.dump_elf(tmp_path / "core"))
    guest.cont()
    cache = Cache(tmp_path / "cache")
    kernel = find_kernel(source.content, cache=cache)
    assert kernel.banner.strip() == version.strip()
    assert kernel.release == version.split()[2]
    assert kernel.kaslr_shift == at["_text"] - LINK_TEXT
    assert (kernel.kaslr_shift == 0) is (not spec.kaslr)
    assert kernel.dtb == at["init_top_pgt"] - 0xFFFFFFFF80000000 + kernel.phys_base
    # 5.10 of Debian is built without CONFIG_X86_5LEVEL.
    assert kernel.la57 is ("la57" in flags and spec.cpu_model == "max" and spec.kernel != "5.10")
    assert kernel.notes == ()

    running = decode_source(source)
    table, shift = running.table, kernel.kaslr_shift
    missing = [
        (name, hex(address))
        for address, kind, name in kallsyms
        if kind.isupper() and table.addresses.get(name) != (address - shift if address >> 63 else address)
    ]
    assert missing == []
    assert len(kallsyms) >= 80_000

    # The same table from the file that was booted: types and link-time symbols.
    full = table.isf(full=True)
    booted = decode_source(open_source(kernels.fetch(spec.kernel).vmlinuz))
    assert booted.table.isf(full=True) == full
    assert booted.landmarks == running.landmarks

    for whole in (False, True):
        path = symbol_table(kernel, source.content, cache, full=whole)
        assert schemas.validate(sample(json.loads(path.read_bytes())), use_cache=False)
    again = find_kernel(source.content, cache=Cache(cache.directory))
    assert again == kernel
    assert again.decoded == []


@pytest.mark.guest
def test_build_id_is_the_guests_own(boot, tmp_path):
    guest = boot(GuestSpec())
    notes = guest.run(["sh", "-c", "od -An -v -tx1 /sys/kernel/notes"]).output
    text = "".join(notes.split())
    (build_id,) = re.findall("040000001400000003000000474e5500(.{40})", text)
    source = open_source(guest.dump_elf(tmp_path / "core"))
    assert find_kernel(source.content, cache=Cache(tmp_path / "cache")).build_id == build_id


@pytest.mark.guest
def test_raw_file_with_ram_above_the_hole(boot, tmp_path):
    """The RAM file as QEMU keeps it is not guest-physical memory: the layout is found."""
    guest = boot(GuestSpec(kernel="6.1", cpu_model="max", memory=3072))
    (file,) = (one for one in Path(f"/proc/{guest.pid}/fd").iterdir() if "memfd" in os.readlink(one))
    assert file.stat().st_size == 3072 << 20
    guest.stop()
    opened = open_source(file)
    found = find_kernel(opened.content, cache=Cache(tmp_path / "cache"))
    guest.cont()
    assert "hole from 2 to 4 GiB" in opened.kind
    assert found.release == guest.kernel.release
    assert guest.ram_segments()[1] == (4 << 30, 1 << 30)
