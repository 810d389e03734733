"""Reduces the symbol table in a recording to what a replay asks for: half a megabyte becomes a few KB."""

import json
import sqlite3
from unittest import mock

import zstandard

from live.linux.layout import SymbolTable
from live.recording import replay
from live.recording.opening import open_recording


def asked_for(path):
    """(symbols, types) that a replay of the recording asks for, whether they exist or not."""
    symbols, types = set(), set()

    class Listening(SymbolTable):
        def symbol(self, *names):
            symbols.update(names)
            return super().symbol(*names)

        def _find(self, type_name):
            types.add(type_name.rpartition("!")[2])
            return super()._find(type_name)

    with open_recording(path) as recording, mock.patch.object(replay, "SymbolTable", Listening):
        again = replay.Replay(recording)
        for _ in again.events():
            pass
        assert again.differences == 0
    return symbols, types


def reduced(isf, symbols, types):
    """The ISF with these symbols and types, and the types that lie within these."""
    kept, enums, open_types = {}, {}, sorted(types)
    while open_types:
        name = open_types.pop()
        if name in kept or name not in isf["user_types"]:
            continue
        kept[name] = isf["user_types"][name]
        for kind, inner in within(kept[name]["fields"]):
            if kind == "enum":
                enums[inner] = isf["enums"][inner]
            else:
                open_types.append(inner)
    return {
        **isf,
        "symbols": {name: isf["symbols"][name] for name in sorted(symbols & isf["symbols"].keys())},
        "user_types": dict(sorted(kept.items())),
        "enums": dict(sorted(enums.items())),
    }


def within(fields):
    """(kind, name) of the types that lie in a struct itself, not behind a pointer."""
    for member in fields.values():
        kind = member["type"]
        while kind["kind"] in ("array", "bitfield"):
            kind = kind["subtype" if kind["kind"] == "array" else "type"]
        if kind["kind"] in ("struct", "union", "class", "enum"):
            yield kind["kind"], kind["name"]


def reduce_symbols(path):
    """Write the reduced table into the recording."""
    symbols, types = asked_for(path)
    with open_recording(path) as recording:
        isf = json.loads(recording.symbols())
    text = json.dumps(reduced(isf, symbols, types), separators=(",", ":")).encode()
    data = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(text)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE meta SET data = ? WHERE name = 'symbols'", (data,))
    connection.execute("VACUUM")
    connection.close()
