"""Finding the living kernel, on synthetic RAM."""

import pytest

from live.core.errors import NoKernelFound, SymbolsMissing
from symbols.cache import Cache
from symbols.guest import find_kernel, symbol_table
from symbols.placement import locate

from .build import BANNER, BUILD_ID, LAYOUTS, MIB, Layout, Plan, Ram, install, link


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "symbols")


def ram_with(*plans, size=48 * MIB, **options):
    ram = Ram(size, **options)
    for plan in plans:
        install(ram, plan)
    return ram


def expect(kernel, plan):
    assert kernel.banner == plan.banner
    assert kernel.build_id == BUILD_ID.hex()
    assert kernel.release == plan.banner.split()[2]
    assert kernel.kaslr_shift == plan.shift
    assert kernel.text == plan.text
    assert kernel.phys_base == plan.text - (plan.va - 0xFFFFFFFF80000000)
    assert kernel.dtb == plan.gpa(link("init_top_pgt"))
    assert kernel.la57 is plan.la57


@pytest.mark.parametrize("la57", [False, True], ids=["4 levels", "5 levels"])
@pytest.mark.parametrize("shift", [0, 0x3400000], ids=["nokaslr", "kaslr"])
@pytest.mark.parametrize("flat", [True, False], ids=["mapped", "copied"])
def test_found_by_the_trampoline(cache, la57, shift, flat):
    plan = Plan(la57=la57, shift=shift)
    kernel = find_kernel(ram_with(plan, flat=flat), cache=cache)
    expect(kernel, plan)
    assert kernel.notes == ()


@pytest.mark.parametrize("la57", [False, True], ids=["4 levels", "5 levels"])
def test_found_without_a_trampoline(cache, la57):
    plan = Plan(la57=la57, trampoline=0)
    expect(find_kernel(ram_with(plan), cache=cache), plan)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_each_kallsyms_layout(cache, layout):
    plan = Plan(layout=layout)
    expect(find_kernel(ram_with(plan), cache=cache), plan)


def test_known_kernel_is_recognised_without_decoding(cache):
    first = ram_with(Plan())
    kernel = find_kernel(first, cache=cache)
    assert len(kernel.decoded) == 1
    path = symbol_table(kernel, first, cache)
    assert kernel.decoded == []
    # Another boot of the same kernel: elsewhere, shifted otherwise, and its tables unreadable by now.
    plan = Plan(text=20 * MIB, shift=0x800000)
    second = ram_with(plan)
    second.write(plan.text + 0x200000, bytes(0x300000))
    again = find_kernel(second, cache=Cache(cache.directory))
    expect(again, plan)
    assert again.decoded == []
    assert symbol_table(again, second, cache) == path


def test_build_id_tells_kernels_with_one_banner_apart(cache):
    ram = ram_with(Plan())
    symbol_table(find_kernel(ram, cache=cache), ram, cache)
    other = ram_with(Plan())
    other.write(Plan().gpa(link("__start_notes")) + 16, b"\xff" * 20)
    kernel = find_kernel(other, cache=cache)
    assert kernel.build_id == "ff" * 20
    assert len(kernel.decoded) == 1


def test_stale_kernel_with_overwritten_tables_loses(cache):
    old = Plan(text=32 * MIB, trampoline=0x8C000, banner=BANNER.replace("6.1.0", "5.10.0"), clock=1)
    new = Plan()  # its tables are where those of the old one were
    kernel = find_kernel(ram_with(old, new), cache=cache)
    expect(kernel, new)
    assert len(kernel.notes) == 1
    assert "5.10.0-test" in kernel.notes[0]


def test_intact_kernel_with_the_older_clock_loses(cache):
    old = Plan(
        text=32 * MIB, trampoline=0x8C000, banner=BANNER.replace("6.1.0", "5.10.0"), top_tables=0x200000
    )
    new = Plan(clock=old.clock + 60)
    kernel = find_kernel(ram_with(old, new), cache=cache)
    expect(kernel, new)
    assert "60 s behind" in kernel.notes[0]


def test_two_kernels_with_one_clock_are_explained(cache):
    old = Plan(text=32 * MIB, trampoline=0x8C000, top_tables=0x200000)
    with pytest.raises(NoKernelFound, match="two kernels in this memory look alive"):
        find_kernel(ram_with(old, Plan()), cache=cache)


@pytest.mark.parametrize(
    ("symbol", "why"),
    [
        ("init_task", "swapper"),
        ("page_offset_base", "nowhere|direct map"),
        ("init_top_pgt", "no page tables of a running kernel"),
    ],
)
def test_dead_kernel_says_why(cache, symbol, why):
    ram = ram_with(Plan())
    ram.write(Plan().gpa(link(symbol)), bytes(4096 if symbol == "init_top_pgt" else 48))
    with pytest.raises(NoKernelFound, match=why):
        find_kernel(ram, cache=cache)


def test_broken_task_list(cache):
    ram = ram_with(Plan())
    ram.word(Plan().top_tables + 0x2000 + 16, 0)
    with pytest.raises(NoKernelFound, match="list of tasks is broken"):
        find_kernel(ram, cache=cache)


@pytest.mark.parametrize("broken", [0, 1 << 40], ids=["elsewhere", "nowhere"])
def test_task_list_that_changes_while_it_is_read(cache, broken):
    """A guest that runs forks and reaps meanwhile: a link that is broken once is none that stays so."""
    plan = Plan()
    ram = ram_with(plan)
    link_of_a_task = plan.top_tables + 0x2000 + 16
    sound = bytes(ram.read(link_of_a_task, 8))
    reads = ram.read

    def read(gpa, length):
        answer = bytes(reads(gpa, length))
        if gpa == link_of_a_task:
            ram.write(gpa, sound)
        return answer

    ram.word(link_of_a_task, broken)
    ram.read = read
    expect(find_kernel(ram, cache=cache), plan)


def test_no_linux(cache):
    with pytest.raises(NoKernelFound, match="no Linux kernel was found in 8 MiB"):
        find_kernel(Ram(8 * MIB), cache=cache)


def test_banner_alone_is_no_kernel(cache):
    ram = Ram(8 * MIB)
    ram.write(5 * MIB + 7, BANNER.encode() + b"\0")
    with pytest.raises(NoKernelFound, match=r"text of '6\.1\.0-test' but no page tables"):
        find_kernel(ram, cache=cache)


def test_without_btf(cache):
    with pytest.raises(SymbolsMissing, match="no BTF"):
        find_kernel(ram_with(Plan(btf=False)), cache=cache)


def test_a_kernel_that_is_being_overwritten_is_not_said_to_lack_btf(cache):
    """While a guest boots again, parts of the kernel of before are there still."""
    with pytest.raises(NoKernelFound, match=r"not whole.*built with types.*boots again; try again"):
        find_kernel(ram_with(Plan(btf=False, built_with_btf=True)), cache=cache)
    with pytest.raises(NoKernelFound, match=r"not whole.*neither types.*boots again; try again"):
        find_kernel(ram_with(Plan(btf=False, kallsyms=False)), cache=cache)
    ram = ram_with(Plan(built_with_btf=True))
    ram.write(Plan().text + 0x400000 + 64, bytes(4096))
    with pytest.raises(NoKernelFound, match="boots again"):
        find_kernel(ram, cache=cache)
    expect(find_kernel(ram_with(Plan(built_with_btf=True)), cache=cache), Plan())


def test_without_kallsyms(cache):
    with pytest.raises(SymbolsMissing, match="kallsyms"):
        find_kernel(ram_with(Plan(kallsyms=False)), cache=cache)


def test_unusual_link_address_comes_from_vmcoreinfo(cache):
    plan = Plan(shift=0x3400000)
    ram = ram_with(plan)
    # CONFIG_PHYSICAL_START=0x1800000: _text is linked 8 MiB higher, so the shift is 8 MiB less.
    data = plan.top_tables + 0x4000
    ram.write(data, b"OSRELEASE=6.1.0-test\nKERNELOFFSET=2c00000\n")
    ram.word(plan.gpa(link("vmcoreinfo_data")), 0xFFFF888000000000 + data)
    kernel = find_kernel(ram, cache=cache)
    assert kernel.kaslr_shift == 0x2C00000
    assert kernel.dtb == plan.gpa(link("init_top_pgt"))
    table = kernel.decoded[0]
    assert table.addresses["_text"] == 0xFFFFFFFF81800000


def test_locate_looks_at_low_memory_only():
    ram = ram_with(Plan())
    ram.reads = 0
    assert len(locate(ram)) == 1
    assert ram.reads < 12


def test_progress_is_reported(cache):
    seen = []
    ram = ram_with(Plan(layout=Layout()))
    kernel = find_kernel(ram, cache=cache, progress=lambda percent, text: seen.append((percent, text)))
    symbol_table(kernel, ram, cache, progress=lambda percent, text: seen.append((percent, text)))
    assert [percent for percent, _ in seen] == [0.0, 20.0, 70.0, 100.0]
