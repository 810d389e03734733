"""Files from strangers: a clear error, no hang, nothing written."""

import os
import random
import sqlite3

import pytest
import zstandard

from live.core.errors import PseError, TargetError
from live.recording import codec, format
from live.recording.opening import open_recording
from live.recording.stepper import Frames
from tests.recording.build import Lab
from tests.recording.hostile import consume


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("sound"), Frames(start=True))
    lab.guest.task(1, b"init")
    lab.steps.attach()
    lab.snapshot()
    lab.run(8)
    lab.writer.close()
    assert consume(lab.path) is None
    return lab.path.read_bytes()


@pytest.fixture
def bad(tmp_path, sound):
    path = tmp_path / "bad.pse"
    path.write_bytes(sound)
    return path


def sql(path, *statements):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)
    connection.commit()
    connection.close()


def test_cut_anywhere(bad, sound):
    for length in (0, 1, 50, 99, 100, 511, 4096, 4097, *range(8192, len(sound), 4096), len(sound) - 1):
        bad.write_bytes(sound[:length])
        assert isinstance(consume(bad), PseError), length


@pytest.mark.parametrize("seed", range(8))
def test_bits_flipped_and_pages_swapped(bad, sound, seed):
    rng = random.Random(seed)
    for _ in range(12):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 1, 5, 40))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            one, other = (rng.randrange(len(data) // 4096) * 4096 for _ in range(2))
            data[one : one + 4096], data[other : other + 4096] = (
                data[other : other + 4096],
                data[one : one + 4096],
            )
        bad.write_bytes(data)
        consume(bad)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["PRAGMA user_version = 2"], "version 2, made by a newer version of pse; this one reads version 1"),
        (["PRAGMA user_version = 0"], "version 0, made by another version"),
        (["PRAGMA application_id = 1"], "is no recording"),
        (["PRAGMA journal_mode = WAL"], "a mode that recordings are never in"),
        (["CREATE TRIGGER t AFTER INSERT ON step BEGIN DELETE FROM step; END"], "its tables are others"),
        (["CREATE INDEX i ON step (kind)"], "its tables are others"),
        (["CREATE VIEW v AS SELECT 1"], "its tables are others"),
        (["CREATE TABLE more (id)"], "its tables are others"),
        (
            [
                "ALTER TABLE step RENAME TO old",
                "CREATE VIEW step AS SELECT * FROM old",
            ],
            "its tables are others",
        ),
        (
            [
                "DROP TABLE event",
                "CREATE VIEW event AS WITH RECURSIVE c(x) AS "
                "(SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS id, 1 AS step, x'00' AS data FROM c",
            ],
            "its tables are others",
        ),
        (["DELETE FROM meta WHERE name = 'recording'"], "does not say what it is a recording of"),
        (["DELETE FROM meta WHERE name = 'symbols'"], "no symbol table"),
        (["DELETE FROM step WHERE id = 5"], "step 5 is missing"),
        (["DELETE FROM event WHERE id = 3"], "event 3 is missing"),
        (["DELETE FROM generation WHERE id = 4"], "generation 4 is missing"),
        (["DELETE FROM block"], "page 16 is missing"),
        (["UPDATE step SET kind = 'leap' WHERE id = 4"], "step 4 has impossible values"),
        (["UPDATE step SET events = 0 WHERE id = 9"], "step 9 has impossible values"),
        (["UPDATE step SET time_ns = 'now' WHERE id = 3"], "step 3 has impossible values"),
        (["UPDATE step SET time_ns = -1 WHERE id = 3"], "step 3 has impossible values"),
        (["UPDATE step SET detail = NULL WHERE kind = 'trap'"], "is a trap without one"),
        (["UPDATE event SET data = zeroblob(100) WHERE id = 2"], "event 2: something compressed is broken"),
        (["UPDATE event SET data = zeroblob(100000000) WHERE id = 2"], "missing or too large"),
        (["UPDATE event SET data = 'text' WHERE id = 2"], "event 2 is missing or too large"),
        (
            [
                "UPDATE generation SET data = NULL WHERE id = 1",
            ],
            None,
        ),
        (["UPDATE block SET data = x'' WHERE id = 16"], "block 16"),
        (
            ["UPDATE step SET generations = 9223372036854775807 WHERE id = (SELECT max(id) FROM step)"],
            "missing",
        ),
    ],
)
def test_what_a_database_can_say_wrongly(bad, statements, message):
    try:
        sql(bad, *statements)
    except sqlite3.IntegrityError:  # NOT NULL
        return
    error = consume(bad)
    assert isinstance(error, TargetError)
    assert message in str(error)


def put(path, table, row, raw, column="data"):
    data = zstandard.ZstdCompressor(level=19).compress(raw)
    sql(path, (f"UPDATE {table} SET {column} = ? WHERE id = ?", (data, row)))


@pytest.mark.parametrize(
    ("table", "limit"),
    [("event", format.MAX_SMALL), ("block", format.MAX_BLOCK), ("generation", format.MAX_GENERATION)],
)
def test_bombs_are_not_lit(bad, table, limit):
    put(bad, table, 16 if table == "block" else 2, bytes(limit + 1))
    assert f"more than {limit} bytes" in str(consume(bad))


def test_a_bomb_that_hides_its_size(bad):
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    data = compressor.compress(bytes(1 << 28)) + compressor.flush()
    sql(bad, ("UPDATE event SET data = ? WHERE id = 2", (data,)))
    assert isinstance(consume(bad), TargetError)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b"{}",
        b"null",
        b'{"event":"start"}',
        b'{"event":"start","occasion":{"time_ns":1e400,"trigger":"x"}}',
        b'{"event":"start","occasion":{"time_ns":99999999999999999999,"trigger":"x"}}',
        b'{"event":"start","reason":"boredom","occasion":{"time_ns":1,"trigger":"x"},"process":{}}',
        b"\xff\xfe",
    ],
)
def test_events_that_make_no_sense(bad, raw):
    put(bad, "event", 2, raw)
    assert "event 2" in str(consume(bad))


def test_traps_that_make_no_sense(bad):
    for raw in (b"{}", b'{"trap":"code"}', b'{"trap":"code","registers":[]}', b"7"):
        put(bad, "step", 5, raw, "detail")
        assert "step 5" in str(consume(bad))
    put(
        bad,
        "step",
        5,
        b'{"trap":"code","vcpu":0,"asid":0,"cr3":0,"pc":18446744071562076176,"sequence":1,"time_ns":1,"held":true,'
        b'"registers":{}}',
        "detail",
    )
    consume(bad)


@pytest.mark.parametrize(
    "table",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"metadata":{},"user_types":{},"base_types":{},"enums":{},"symbols":{}}',
        b'{"metadata":{"format":"6.2.0"},"user_types":3,"base_types":[],"enums":null,"symbols":"x"}',
        b'{"metadata":{"format":"6.2.0"},"user_types":{"task_struct":{"kind":"struct","size":-1,"fields":{"tasks":'
        b'{"offset":"x","type":{"kind":"struct","name":"task_struct"}}}}},"base_types":{"pointer":{"size":1e9}},'
        b'"enums":{},"symbols":{"init_task":{"address":"x"}}}',
    ],
)
def test_symbol_tables_that_make_no_sense(bad, table):
    put(bad, "meta", 2, table)
    assert isinstance(consume(bad), PseError)


def test_pages_that_lead_in_circles(bad):
    page = b"\1" * 4096
    put(bad, "block", 16, format.pack_block([16], [page]))
    assert "page 16 is based on a later one" in str(consume(bad))
    with open_recording(bad) as recording:
        put(bad, "block", 16, format.pack_block(list(range(15, 79)), [page] * 64))
        with pytest.raises(TargetError, match="too many versions"):
            recording.page(16 + 40)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0" + bytes(84))
    for name in ("pipe", "directory", "empty", "other.db", "absent"):
        assert isinstance(consume(tmp_path / name), TargetError), name


def test_nothing_is_created_beside_a_recording_that_is_read(bad):
    bad.chmod(0o400)
    assert consume(bad) is None
    assert os.listdir(bad.parent) == ["bad.pse"]


@pytest.mark.parametrize("kind", [[], {}, 5, None, "rise"])
def test_a_trap_of_no_known_kind(kind):
    with pytest.raises(ValueError, match="no known kind"):
        codec.decode_trap({"trap": kind})
