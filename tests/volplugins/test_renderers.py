"""The streaming renderers: each row at once, none kept, nothing that a terminal would obey."""

import datetime
import io
import json
import sys

import pytest
from volatility3.framework import renderers
from volatility3.framework.renderers import format_hints

from live.volatility.output.json_lines import JsonLinesStream
from live.volatility.output.rich_text import RichText

HOSTILE = "\x1b]0;owned\x07[red]x[/red]\r\n\u202e\udcfe"
TIME = datetime.datetime(2024, 2, 3, 4, 5, 6, 700, datetime.timezone.utc)
COLUMNS = [
    ("EVENT", str),
    ("PID", int),
    ("OFFSET", format_hints.Hex),
    ("TIME", datetime.datetime),
    ("RAW", bytes),
]


def grid(rows, columns=COLUMNS):
    return renderers.TreeGrid(columns, rows)


def render(renderer, table, monkeypatch, out=None):
    out = out or io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    renderer().render(table)
    return out.getvalue()


def row(name, pid=1):
    return name, pid, format_hints.Hex(255), TIME, b"\x01\x02"


def test_json_lines(monkeypatch):
    absent = (renderers.NotAvailableValue(),) * 5
    out = render(JsonLinesStream, grid([(0, row(HOSTILE)), (1, row("b", 2)), (0, absent)]), monkeypatch)
    assert out.isascii()
    assert [json.loads(line) for line in out.splitlines()] == [
        {
            "TreeDepth": 0,
            "EVENT": HOSTILE.replace("\udcfe", "\\xfe"),
            "PID": 1,
            "OFFSET": 255,
            "TIME": "2024-02-03T04:05:06.000700+00:00",
            "RAW": "01 02",
        },
        {
            "TreeDepth": 1,
            "EVENT": "b",
            "PID": 2,
            "OFFSET": 255,
            "TIME": "2024-02-03T04:05:06.000700+00:00",
            "RAW": "01 02",
        },
        dict.fromkeys([title for title, _ in COLUMNS], None) | {"TreeDepth": 0},
    ]


def test_rich(monkeypatch):
    rows = [(0, row("start", 7)), (1, row(HOSTILE, 8)), (0, (renderers.UnreadableValue(),) * 5)]
    lines = render(RichText, grid(rows), monkeypatch).splitlines()
    assert [line.split() for line in lines] == [
        ["EVENT", "PID", "OFFSET", "TIME", "RAW"],
        ["start", "7", "0xff", "2024-02-03", "04:05:06.000700", "UTC", "01", "02"],
        [
            "└",
            "\\x1b]0;owned\\x07[red]x[/red]\\x0d\\x0a\\u202e\\xfe",
            "8",
            "0xff",
            "2024-02-03",
            "04:05:06.000700",
            "UTC",
            "01",
            "02",
        ],
        ["-", "-", "-", "-", "-"],
    ]


@pytest.mark.parametrize("renderer", [JsonLinesStream, RichText])
def test_a_row_is_out_before_the_next_is_made_and_none_is_kept(renderer, monkeypatch):
    flushed = []

    class Out(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue())

    out = Out()

    def rows():
        for number in range(100):
            yield 0, row(f"event-{number}", number)
            assert f"event-{number}" in flushed[-1]

    table = grid(rows())
    render(renderer, table, monkeypatch, out)
    assert out.getvalue().count("event-") == 100
    assert table._children == []


@pytest.mark.parametrize("renderer", [JsonLinesStream, RichText])
def test_a_populated_grid_is_shown_too(renderer, monkeypatch):
    table = grid([(0, row("parent")), (1, row("child"))])
    table.populate()
    out = render(renderer, table, monkeypatch)
    assert out.count("parent") == out.count("child") == 1


@pytest.mark.parametrize("renderer", [JsonLinesStream, RichText])
def test_columns_can_be_hidden(renderer, monkeypatch):
    monkeypatch.setattr(renderer, "column_hide_list", ["event", "raw"])
    out = render(renderer, grid([(0, row("secret"))]), monkeypatch)
    assert "secret" not in out
    assert "EVENT" not in out
    assert "PID" in out


def test_rows_deeper_than_their_parents_allow_are_lifted(monkeypatch):
    out = render(JsonLinesStream, grid([(3, row("a")), (3, row("b")), (0, row("c"))]), monkeypatch)
    assert [json.loads(line)["TreeDepth"] for line in out.splitlines()] == [0, 1, 0]


def test_dumps_of_memory_keep_their_lines_and_lose_their_escapes(monkeypatch):
    data = format_hints.MultiTypeData(b"\x1b[31mevil", encoding="utf-8")
    out = render(RichText, grid([(0, (data,))], [("Data", format_hints.MultiTypeData)]), monkeypatch)
    assert "\x1b" not in out
    assert "\\x1b[31mevil" in out
