"""`vol linux.pse` on the bundled recordings: the golden events, through each renderer."""

import csv
import io
import json

import pytest

from live.output.columns import action, process_of, reason
from live.recording.codec import decode_event
from tests.recording.make import DATA, SPECS
from tests.volplugins import scene

COLUMNS = ("EVENT", "PID", "COMM", "REASON")


def table(text, separator):
    """Rows of a table of one line a row, below the line that names the columns."""
    lines = [[cell.strip() for cell in line.split(separator)] for line in text.splitlines()]
    titles = next(line for line in lines if set(COLUMNS) <= set(line))
    below = lines[lines.index(titles) + 1 :]
    return [dict(zip(titles, line, strict=True)) for line in below if len(line) == len(titles)]


def words(text):
    """Rows of the rich renderer: the time is three words, and no COMM here has a space."""
    lines = [line.split() for line in text.splitlines()]
    return [
        dict(zip(COLUMNS, (line[0], line[4], line[7], line[8]), strict=True))
        for line in lines
        if line and line[0] in ("start", "exec", "end")
    ]


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


PARSERS = {
    "quick": lambda text: table(text, "\t"),
    "pretty": lambda text: table(text, "|"),
    "csv": lambda text: list(csv.DictReader(io.StringIO(text[text.index("TreeDepth") :]))),
    "json": lambda text: json.loads(text[text.index("[") :]),
    "jsonl": json_lines,
    "jsonlines": json_lines,
    "rich": words,
}


def shallow(kernel, renderer):
    """Every renderer with one kernel, every kernel with one renderer, the others with `make deep`."""
    few = kernel == "6.1" or renderer == "jsonlines"
    return pytest.param(kernel, renderer, marks=() if few else pytest.mark.deep)


@pytest.mark.parametrize(
    ("kernel", "renderer"), [shallow(kernel, renderer) for kernel in SPECS for renderer in PARSERS]
)
def test_every_renderer_shows_the_golden_events(kernel, renderer, tmp_path):
    golden = [
        decode_event(json.loads(line)) for line in (DATA / f"linux-{kernel}.jsonl").read_text().splitlines()
    ]
    run = scene.vol(
        "-f",
        str(DATA / f"linux-{kernel}.pse"),
        "linux.pse",
        "--kernel-threads",
        cwd=tmp_path,
        symbols=tmp_path / "symbols",
        pack=scene.packs()[0],
        renderer=renderer,
    )
    assert run.status == 0, run.errors
    shown = [tuple(str(row[name]) for name in COLUMNS) for row in PARSERS[renderer](run.output)]
    assert shown == [
        (action(one), str(process_of(one).pid), process_of(one).comm, reason(one)) for one in golden
    ]
