"""Mirrors, kernel packages, the archive and the cache: what the lab does without a guest or a network."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.guest import FetchError, GuestSpec, cache, initramfs, kernels
from tests.guest.apt import Mirrors, mirrors

DEB822 = """\
# made by an installer
Types: deb
# http://snapshot.example/archive/2025
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib
deb http://mirror.example/debian-security trixie-security main
"""
FOREIGN = "deb https://vendor.example/apt cloud-sdk-bookworm main\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"sources.list.d/debian.sources": DEB822, "sources.list.d/vendor.list": FOREIGN},
            ("http://mirror.example/debian", "http://mirror.example/debian-security"),
        ),
        (
            {"sources.list": ONE_LINE},
            ("http://mirror.example/debian", "http://mirror.example/debian-security"),
        ),
        ({"sources.list": "deb http://one.example/debian sid main\n"}, ("http://one.example/debian", None)),
        (
            {
                "sources.list.d/a.sources": DEB822.replace("Types", "Enabled: no\nTypes", 1),
                "sources.list.d/b.list": "deb http://two.example/debian stable main",
            },
            ("http://two.example/debian", "http://mirror.example/debian-security"),
        ),
    ],
)
def test_mirrors(tmp_path: Path, files: dict[str, str], expected: tuple[str, str | None]) -> None:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert mirrors(tmp_path) == Mirrors(main=expected[0], security=expected[1])


def test_no_mirror_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(FOREIGN)
    with pytest.raises(FetchError, match="no Debian mirror is named in the apt sources"):
        mirrors(tmp_path)


def test_unknown_kernel() -> None:
    with pytest.raises(FetchError, match=r"no kernel '2\.4' in the lab's table: choose one of 5\.10, 6\.1, "):
        kernels.fetch("2.4")


def test_newc_archive() -> None:
    entries = [
        initramfs.Entry(name="a", mode=0o100644, data=b"hello"),
        initramfs.Entry(name="d", mode=0o040755),
    ]
    archive = b"".join(initramfs.newc(entries))
    assert archive == (
        b"070701"
        b"00000001"
        b"000081a4"
        b"00000000"
        b"00000000"
        b"00000001"
        b"00000000"
        b"00000005"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000002"
        b"00000000"
        b"a\0hello\0\0\0"
        b"070701"
        b"00000002"
        b"000041ed"
        b"00000000"
        b"00000000"
        b"00000002"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000002"
        b"00000000"
        b"d\0"
        b"070701"
        b"00000003"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000001"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"0000000b"
        b"00000000"
        b"TRAILER!!!\0\0\0\0"
    )


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(work: Path) -> None:
        (work / "half").touch()
        raise FetchError("the mirror went away")

    with pytest.raises(FetchError):
        cache.publish(tmp_path / "thing", build)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thing.lock"]


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_publish, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "builds").read_text() == "built\n"
    assert (tmp_path / "thing" / "file").read_text() == "whole"


def _publish(directory: Path) -> None:
    def build(work: Path) -> None:
        with (directory / "builds").open("a") as log:
            log.write("built\n")
        time.sleep(0.2)
        (work / "file").write_text("whole")

    if (cache.publish(directory / "thing", build) / "file").read_text() != "whole":
        raise SystemExit(1)


def test_equal_specs_share_a_guest() -> None:
    assert hash(GuestSpec(kernel="6.1", cpus=2)) == hash(GuestSpec(cpus=2))
    assert GuestSpec(kaslr=False).command_line().endswith(" nokaslr")
