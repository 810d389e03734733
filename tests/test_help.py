"""What `pse ... --help` looks like on a terminal of 80 columns."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from live.cli.main import parser


def parsers(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


@pytest.mark.parametrize("command", list(parsers(parser())), ids=lambda command: command.prog)
def test_help_fits_and_examples_keep_their_lines(command: argparse.ArgumentParser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = command.format_help()
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    assert set(examples) <= set(shown.splitlines())


def test_every_command_is_checked():
    found = {command.prog for command in parsers(parser())}
    assert {"pse", "pse watch", "pse plugin", "pse symbols build"} <= found
