import json

import pytest

from live.core.text import encodable, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("bash", "bash"),
        ("two words", "two words"),
        ("grün", "grün"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("right\u202eleft", "right\\u202eleft"),
        (b"\xff\xfe".decode("utf-8", "surrogateescape"), "\\xff\\xfe"),
        ("\U000e0001", "\\U000e0001"),
        ("[bold]x[/]", "[bold]x[/]"),
        ("\u2028", "\\u2028"),
    ],
)
def test_printable(raw, shown):
    assert printable(raw) == shown


def test_printable_leaves_nothing_that_a_terminal_acts_on():
    shown = printable("".join(map(chr, range(0x3000))))
    assert all(char == " " or char.isprintable() for char in shown)


def test_encodable_keeps_text_and_escapes_only_surrogates():
    assert encodable("grün\n") == "grün\n"
    assert encodable("a\udcffb") == "a\\xffb"
    json.dumps(encodable("a\udcffb"), ensure_ascii=False).encode()
