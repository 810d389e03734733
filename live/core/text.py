"""Text that came from the guest, made safe to show.

A process may name itself with terminal escapes, line breaks, right-to-left marks or bytes that are
no UTF-8.  Everything that does not simply print is shown as a backslash escape.
"""

from __future__ import annotations

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


def _shown(char: str) -> str:
    code = ord(char)
    if char == " " or unicodedata.category(char)[0] not in "CZ":
        return char
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
