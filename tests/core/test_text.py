import itertools
import json

import pytest

from live.core.text import encodable, escaped, printable, unescaped


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


ALPHABET = (b"\\", b"x", b"8", b"f", b"\xff", b"\x80", "ü".encode(), b"A")


@pytest.mark.parametrize("length", range(6))
def test_what_is_escaped_can_be_had_again_and_is_never_the_same(length):
    seen = set()
    for parts in itertools.product(ALPHABET, repeat=length):
        raw = b"".join(parts)
        text = escaped(raw.decode("utf-8", "surrogateescape"))
        text.encode()
        assert unescaped(text) == raw
        seen.add(text)
    assert len(seen) == len(ALPHABET) ** length


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"a\xffb", r"a\xffb"),
        (rb"a\xffb", r"a\\xffb"),
        (b"\\\xff", r"\\\xff"),
        (rb"grep '\.c$' C:\new \x1b \xFF", r"grep '\.c$' C:\new \x1b \xFF"),
        ("grün".encode(), "grün"),
    ],
)
def test_escaped_changes_what_it_must_and_no_more(raw, shown):
    assert escaped(raw.decode("utf-8", "surrogateescape")) == shown


def test_escaping_takes_no_longer_for_many_backslashes():
    text = "\\" * 200_000
    assert escaped(text) == text
    assert unescaped(text) == text.encode()
