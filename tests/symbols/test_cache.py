"""The cache: unique names, whole files, many processes."""

import json
import multiprocessing
import os
import time
from dataclasses import fields

import pytest

from live.core.errors import TargetError
from symbols.cache import Cache, stem, write_atomically
from symbols.landmarks import Landmarks

BANNER = "Linux version 6.1.0-test (builder@host) #1 SMP\n"


def marks(banner=BANNER, build_id="ab" * 20):
    numbers = dict.fromkeys(
        [field.name for field in fields(Landmarks) if field.name not in ("banner", "build_id")], 7
    )
    return Landmarks(banner=banner, build_id=build_id, **numbers)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "symbols")


def test_store_and_find(cache):
    assert cache.find(BANNER, "ab" * 20) is None
    path = cache.store(marks(), {"symbols": {}})
    assert path.parent == cache.directory / "linux"
    assert json.loads(path.read_bytes()) == {"symbols": {}}
    assert cache.find(BANNER, "ab" * 20) == path
    assert cache.find(BANNER, "ab" * 20, full=True) is None
    assert cache.find(BANNER, "cd" * 20) is None
    assert cache.find(BANNER + "x", "ab" * 20) is None
    assert list(cache.landmarks()) == [marks()]


def test_names_are_unique_and_tame():
    assert stem(BANNER, "a") != stem(BANNER, "b") != stem(BANNER, None)
    assert stem("Linux version ../../etc/passwd (x)", None).startswith("_.._etc_passwd-")
    assert stem("", "").startswith("unknown-")


def test_entries_newest_first(cache):
    old = cache.store(marks(), {})
    os.utime(old, (1000, 1000))
    cache.store(marks(), {}, full=True)
    assert [(entry.full, entry.current) for entry in cache.entries()] == [(True, True), (False, True)]


def test_prune(cache):
    old = cache.store(marks(), {})
    os.utime(old, (1000, 1000))
    new = cache.store(marks(BANNER + "2"), {})
    (cache.tables / ".tmp-debris").write_bytes(b"")
    os.utime(cache.tables / ".tmp-debris", (1000, 1000))
    foreign = cache.tables / "from-dwarf2json.json"
    foreign.write_bytes(b"{}")
    removed = cache.prune(days=1)
    assert old in removed
    assert sorted(path.name for path in cache.tables.iterdir()) == sorted(
        [new.name, new.with_suffix(".landmarks").name, foreign.name]
    )
    cache.prune(keep=0)
    assert [path.name for path in cache.tables.iterdir()] == [foreign.name]


def test_damaged_files_are_passed_over(cache):
    cache.store(marks(), {})
    for name, content in (("a", b""), ("b", b"{}"), ("c", b"[1]"), ("d", b"\xff"), ("e", b'{"banner": 1}')):
        (cache.tables / f"{name}.landmarks").write_bytes(content)
    assert list(cache.landmarks()) == [marks()]


def test_unwritable_directory_is_explained(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TargetError, match="PSE_SYMBOLS"):
        Cache(tmp_path / "file" / "below").store(marks(), {})


def test_default_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PSE_SYMBOLS", str(tmp_path))
    assert Cache.default().directory == tmp_path
    monkeypatch.delenv("PSE_SYMBOLS")
    assert Cache.default().directory.name == "symbols"


def _write_many(path, content):
    for _ in range(50):
        write_atomically(path, content)


def test_two_writers_and_a_reader_see_whole_files(tmp_path):
    path = tmp_path / "cache" / "table.json"
    contents = [bytes([number]) * 300_000 for number in (1, 2)]
    writers = [
        multiprocessing.get_context("spawn").Process(target=_write_many, args=(path, content))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert path.read_bytes() in contents
            seen += 1
        time.sleep(0.001)
    assert seen
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [one.name for one in path.parent.iterdir()] == ["table.json"]
