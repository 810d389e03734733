"""Text that came from the guest, made safe to show.

A process may name itself with terminal escapes, line breaks, right-to-left marks or bytes that are
no UTF-8.  Everything that does not simply print is shown as a backslash escape.
"""

from __future__ import annotations

import re
import unicodedata


def printable(text: str) -> str:
    """``text`` with all control, format, surrogate and unassigned characters as ``\\xNN`` or ``\\uNNNN``.

    Undecodable bytes (``surrogateescape``) appear as the byte they were.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def encodable(text: str) -> str:
    """``text`` without lone surrogates, so that JSON readers take it; undecodable bytes as ``\\xNN``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_shown(char) if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


_NOT_UTF8 = re.compile(r"(?<!\\)(\\*)(?:x([89a-f][0-9a-f])|([\udc80-\udcff]))")
_ESCAPED = re.compile(r"(?<!\\)(\\+)x([89a-f][0-9a-f])")


def escaped(text: str) -> str:
    """``text`` for JSON, so that `unescaped` has the bytes again, whatever they were.

    A byte that is no UTF-8 (``surrogateescape``) becomes ``\\xNN``, with N hexadecimal in lower case.  In
    front of that, and of the same four characters as plain text, every backslash is doubled.  Nothing else
    changes.
    """
    return encodable(_NOT_UTF8.sub(_escape, text))


def _escape(match: re.Match[str]) -> str:
    slashes, plain, byte = match.groups()
    if plain is not None:
        return f"{slashes}{slashes}x{plain}"
    return f"{slashes}{slashes}\\x{ord(byte) - 0xDC00:02x}"


def unescaped(text: str) -> bytes:
    """The bytes of which `escaped` has made ``text``."""
    return _ESCAPED.sub(_unescape, text).encode("utf-8", "surrogateescape")


def _unescape(match: re.Match[str]) -> str:
    slashes, digits = match.groups()
    half = "\\" * (len(slashes) // 2)
    return half + (chr(0xDC00 + int(digits, 16)) if len(slashes) % 2 else f"x{digits}")


def _shown(char: str) -> str:
    code = ord(char)
    if char == " " or unicodedata.category(char)[0] not in "CZ":
        return char
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
