"""`vol` as a user starts it, from a directory of its own, on input that needs no guest."""

import pytest

from tests.volplugins import scene

PACKS = scene.packs()


@pytest.fixture(params=PACKS, ids=lambda pack: "checkout" if pack != PACKS[0] else "installed")
def vol(request, tmp_path):
    """`vol` with the pack that is installed, and with the checkout's."""

    def run(*arguments, **options):
        return scene.vol(
            *arguments, cwd=tmp_path, symbols=tmp_path / "symbols", pack=request.param, **options
        )

    return run


def test_the_plugin_is_listed_beside_the_stock_ones(vol):
    run = vol("--help", "-vv", renderer="quick")
    listed = {line.split()[0] for line in run.output.splitlines() if line.startswith("    ") and line.split()}
    assert run.status == 0
    assert {"linux.pse.Pse", "linux.pslist.PsList", "linux.malware.check_syscall.Check_syscall"} <= listed
    assert {"windows.pslist.PsList", "mac.pslist.PsList", "timeliner.Timeliner"} <= listed
    failed = run.output.partition("could not be loaded")[2]  # some stock ones need optional packages
    assert "pse" not in failed
    assert "rich" in run.output
    assert "jsonlines" in run.output


def test_the_short_name_is_not_ambiguous(vol):
    run = vol("linux.pse", "--help", renderer="quick")
    assert run.status == 0
    for option in ("--pid", "--tree", "--next", "--duration", "--count", "--new", "--kernel-threads"):
        assert option in run.output


def test_nothing_to_look_at(vol):
    run = vol("linux.pse")
    assert (run.status, run.rows) == (1, [])
    assert (
        "give -f an image, a recording, or SCHEME:///TARGET of a running guest (qemu, process" in run.errors
    )


@pytest.mark.parametrize("plugin", ["linux.pse", "linux.pslist"])
def test_a_kdump_is_explained_and_never_an_empty_list(vol, tmp_path, plugin):
    (tmp_path / "vmcore").write_bytes(b"KDUMP   " + bytes(1 << 20) + b"Linux version 6.1.0 (x) #1\n\0")
    run = vol("-f", "vmcore", plugin)
    assert (run.status, run.rows) == (1, [])
    assert "kdump-compressed dump, which Volatility cannot read" in run.errors


@pytest.mark.parametrize("plugin", ["linux.pse", "linux.pslist"])
def test_memory_without_a_kernel_is_explained(vol, tmp_path, plugin):
    (tmp_path / "ram.raw").write_bytes(bytes(8 << 20))
    run = vol("-f", "ram.raw", plugin)
    assert (run.status, run.rows) == (1, [])
    assert "no Linux kernel was found in 8 MiB of memory" in run.errors


def test_other_systems_are_left_alone(vol, tmp_path):
    (tmp_path / "ram.raw").write_bytes(bytes(8 << 20))
    run = vol("-f", "ram.raw", "windows.pslist")
    assert run.status == 1
    assert "Linux" not in run.errors


def test_a_guest_that_is_not_there(vol, tmp_path):
    run = vol("-f", f"qemu://{tmp_path}/none.sock", "linux.pse")
    assert (run.status, run.rows) == (1, [])
    assert "none.sock" in run.errors
    assert "Traceback" not in run.errors


def test_stock_plugins_on_a_guest_that_is_not_there(vol, tmp_path):
    run = vol("-f", f"qemu://{tmp_path}/none.sock", "linux.pslist")
    assert run.status != 0
    assert run.rows == []
