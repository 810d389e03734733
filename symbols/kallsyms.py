"""The kernel's own symbol table (kallsyms), in all of its layouts, which are detected by structure.

Theory of operation
-------------------
``scripts/kallsyms.c`` writes these tables into the kernel's read-only data:

- ``token_table``: 256 NUL-terminated strings; ``token_index``: the offset of each (u16).  A name is a
  sequence of bytes that each stand for a token.  A digit always stands for itself, so ``"0\\0" "1\\0" ...
  "9\\0"`` is the anchor: its address minus ``token_index[ord("0")]`` is the start of the table, and all 256
  entries must agree.
- ``markers``: u32 (before 4.20 u64), the offset of every 256th name; begins with 0, ascends.
- ``names``: for each symbol a length (one byte; since 6.1 two if the first has bit 7) and as many bytes.
- ``num_syms``: u32 (before 4.20 u64), aligned, just before ``names``.  It must agree with the number of
  markers, and that many names must end exactly where the markers begin.
- the values: u64 ``addresses``; or s32 ``offsets`` and a ``relative_base``, either plain (base + offset) or
  "absolute percpu" (negative: base - 1 - offset; else the value itself); or, from 7.0, s32 offsets relative
  to their own address.
- ``seqs_of_names``: 3 bytes per symbol; not needed, but may lie between the others.

Order: values, num_syms, names, markers, [seqs_of_names,] token_table, token_index until 6.3; since 6.4
num_syms, names, markers, token_table, token_index, values, [relative_base,] seqs_of_names.  Distributions
back-port parts of this, so the version does not tell.  All encodings of values are tried at both places; the
right one gives ascending values with ``_text`` at its address.

In RAM ``relative_base`` and ``addresses`` are relocated, so the result is run-time addresses.  Values below
`KERNEL_SPACE` are absolute (per-CPU offsets before 6.15) and never shifted.
"""

from __future__ import annotations

import collections
import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from live.core.errors import SymbolsMissing
from symbols.window import Bytes

KERNEL_SPACE = 0xFFFFFFFF80000000
MAX_SYMBOLS = 4 << 20
MAX_TRIES = 256
MAX_EXPANDED = 256 << 20
"""Characters of all names in total."""

_DIGITS = re.compile(b"".join(b"%d\0" % digit for digit in range(10)))
_MARKERS32 = re.compile(rb"(?=\0{4}[\s\S][\x02-\x7f]\0\0[\s\S][\x04-\xff][\s\S]\0)")
_MARKERS64 = re.compile(rb"(?=\0{8}[\s\S][\x02-\x7f]\0{6}[\s\S][\x04-\xff][\s\S]\0{5})")
_NEAR, _REACH = 1 << 20, 32 << 20  # seqs_of_names may lie between markers and token_table
_LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """Parallel sequences, in address order: names, type letters as in nm(1), run-time addresses."""

    names: list[str]
    kinds: str
    values: list[int]
    encoding: str
    """The encoding of the values: ``absolute``, ``relative``, ``percpu`` or ``place``."""
    tables: dict[str, int]
    """Run-time addresses of the tables (``kallsyms_names``, ...), which kallsyms does not list."""


@dataclass(frozen=True, slots=True)
class _Tables:
    count: int
    num_syms: int
    names: int
    markers: int
    tokens: tuple[str, ...]
    token_table: int
    token_index: int
    markers_end: int

    @property
    def end(self) -> int:
        """First byte behind token_index."""
        return self.token_index + 512


def decode(image: Bytes, va: int, text: int | None = None) -> Kallsyms:
    """The kallsyms of a kernel image.

    ``va``: virtual address of its first byte; ``text``: that of ``_text``, if known.  Raises
    `SymbolsMissing`.
    """
    seen = None
    for tables in _candidates(image):
        encoded = _slices(image, tables)
        if encoded is None:
            continue
        uses = collections.Counter(b"".join(encoded))
        if sum(times * len(tables.tokens[token]) for token, times in uses.items()) > MAX_EXPANDED:
            continue
        names = _expand(encoded, tables.tokens)
        seen = tables
        for encoding, values, found in _values(image, tables, va):
            if _plausible(names, values, va if text is None else text, exact=text is not None):
                kinds = "".join([name[:1] for name in names])
                places = (
                    found
                    | {
                        "kallsyms_num_syms": tables.num_syms,
                        "kallsyms_names": tables.names,
                        "kallsyms_markers": tables.markers,
                        "kallsyms_token_table": tables.token_table,
                        "kallsyms_token_index": tables.token_index,
                    }
                    | _seqs_of_names(image, tables, found)
                )
                at = {name: place + va for name, place in places.items()}
                return Kallsyms([name[1:] for name in names], kinds, values, encoding, at)
    if seen is None:
        raise SymbolsMissing(
            "this kernel's kallsyms tables were not found (CONFIG_KALLSYMS off, or the image is damaged): "
            "give a symbol table of this kernel to Volatility by hand"
        )
    raise SymbolsMissing(
        f"kallsyms names {seen.count} symbols but their addresses are in no known form: "
        "please report this kernel's version, or give a symbol table by hand"
    )


def _candidates(image: Bytes) -> Iterator[_Tables]:
    tries = 0
    for match in _DIGITS.finditer(image):
        found = _tokens(image, match.start())
        if found is None:
            continue
        start, tokens, index = found
        for size, pattern in ((4, _MARKERS32), (8, _MARKERS64)):
            for markers, entries in _marker_tables(image, start, size, pattern):
                for num_syms, names, count in _counts(image, markers, entries):
                    tries += 1
                    if tries > MAX_TRIES:
                        return
                    markers_end = markers + size * -(-count // 256)
                    yield _Tables(count, num_syms, names, markers, tokens, start, index, markers_end)


def _tokens(image: Bytes, zero: int) -> tuple[int, tuple[str, ...], int] | None:
    """(offset of token_table, tokens, offset of token_index), given the offset of the token "0"."""
    window = bytes(image[zero : zero + (64 << 10)])
    at = 0
    for _ in range(256 - ord("0")):
        at = window.find(b"\0", at) + 1
        if not at:
            return None
    for alignment in (1, 2, 4, 8):  # .balign 8, or 4 in recent kernels; any is accepted
        index_at = zero + at
        index_at += -index_at % alignment
        raw = bytes(image[index_at : index_at + 512])
        if len(raw) < 512:
            return None
        index = struct.unpack("<256H", raw)
        start = zero - index[ord("0")]
        if index[0] or start < 0 or any(a >= b for a, b in itertools.pairwise(index)):
            continue
        tokens = bytes(image[start : zero + at]).split(b"\0")[:256]
        ends = [0]
        for token in tokens[:-1]:
            ends.append(ends[-1] + len(token) + 1)
        if len(tokens) == 256 and tuple(ends) == index:
            return start, tuple(token.decode("latin-1") for token in tokens), index_at
    return None


def _marker_tables(
    image: Bytes, below: int, size: int, pattern: re.Pattern[bytes]
) -> Iterator[tuple[int, list[int]]]:
    """(offset, entries) of possible marker tables, nearest to the token table first."""
    edge = below
    for reach in (_NEAR, _REACH):
        base = max(0, below - reach)
        base += -base % size
        if base >= edge:
            return
        region = bytes(image[base:below])
        words = memoryview(region)[: len(region) & -size].cast("I" if size == 4 else "Q")
        starts = [match.start() for match in pattern.finditer(region, 0, edge - base)]
        edge = base
        for start in reversed(starts):
            if start % size:
                continue
            entries = [0]
            for word in words[start // size + 1 :]:
                if not 256 * 2 <= word - entries[-1] <= 256 * _LONGEST_NAME:
                    break
                entries.append(word)
            if len(entries) >= 4:
                yield base + start, entries


def _counts(image: Bytes, markers: int, entries: list[int]) -> Iterator[tuple[int, int, int]]:
    """(offset of num_syms, of names, number of symbols) that fit the marker table, likelier first."""
    # Up to two words behind the marker table may look like more markers.
    for drop in range(min(3, len(entries) - 1)):
        last, most = entries[-1 - drop], 256 * (len(entries) - drop)
        low, high = max(0, markers - last - 256 * _LONGEST_NAME - 8), markers - last - 2
        if high <= low:
            continue
        region = bytes(image[low:high])
        tops = {
            (most - 255) >> 8,
            most >> 8,
        }  # count is in (most - 256, most]: its upper bytes are one of these
        pattern = b"|".join(re.escape(top.to_bytes(3, "little")) for top in sorted(tops))
        fits = []
        for match in re.finditer(b"(?=" + pattern + b")", region):
            at = match.start() - 1
            count = int.from_bytes(region[at : at + 4], "little") if at >= 0 else 0
            if (low + at) % 4 == 0 and most - 256 < count <= most:
                fits.append((low + at, count))
        # Aligned to 8 it is followed by padding, or is a u64; aligned to 4 the names follow at once.
        for at, count in fits:
            if at % 8 == 0 and not any(region[at - low + 4 : at - low + 8]):
                yield at, at + 8, count
        for at, count in fits:
            yield at, at + 4, count


def _slices(image: Bytes, tables: _Tables) -> list[bytes] | None:
    """The encoded names; None if they do not end where the markers begin."""
    data = bytes(image[tables.names : tables.markers])
    if tables.count > MAX_SYMBOLS:
        return None
    encoded: list[bytes] = []
    append = encoded.append
    at = 0
    try:
        for _ in range(tables.count):
            length = data[at]
            at += 1
            if length & 0x80:
                length = length & 0x7F | data[at] << 7
                at += 1
            if not length:
                return None
            append(data[at : at + length])
            at += length
    except IndexError:
        return None
    return encoded if at <= len(data) < at + 8 else None


def _expand(encoded: list[bytes], tokens: tuple[str, ...]) -> list[str]:
    # One translate of all names is several times faster than a join per name.  Tokens never contain the
    # separator.
    table = dict(enumerate(tokens))
    separator = "\u0100"
    joined = separator.join([one.decode("latin-1") for one in encoded])
    return joined.translate(table).split(separator)


def _values(image: Bytes, tables: _Tables, va: int) -> Iterator[tuple[str, list[int], dict[str, int]]]:
    count = tables.count
    before, behind = tables.num_syms, tables.end

    def words(at: int, code: str, size: int) -> list[int] | None:
        if at < 0 or at + count * size > len(image):
            return None
        return list(struct.unpack_from(f"<{count}{code}", image, at))

    places: list[tuple[int, int]] = []  # (offsets, relative_base)
    for pad in (0, 4):
        base = (before - pad - 8) & ~7
        places.append(((base - 4 * count) & ~7, base))
        places.append(((base - 4 * count) & ~3, base))
    for alignment in (4, 8):
        offsets = behind + -behind % alignment
        base = offsets + 4 * count
        places.append((offsets, base + -base % 8))
    for at, base_at in dict.fromkeys(places):
        offsets_read = words(at, "i", 4)
        if offsets_read is None or base_at < 0 or base_at + 8 > len(image):
            continue
        base = int.from_bytes(image[base_at : base_at + 8], "little")
        if base >= KERNEL_SPACE:
            places_of = {"kallsyms_offsets": at, "kallsyms_relative_base": base_at}
            if min(offsets_read) < 0:
                top = base - 1
                yield "percpu", [top - offset if offset < 0 else offset for offset in offsets_read], places_of
            else:
                yield "relative", [base + offset for offset in offsets_read], places_of
    for at in dict.fromkeys((behind + -behind % 4, behind + -behind % 8)):
        offsets_read = words(at, "i", 4)
        if offsets_read is not None:
            first = va + at
            moved = zip(range(first, first + 4 * count, 4), offsets_read, strict=True)
            yield "place", [place + offset for place, offset in moved], {"kallsyms_offsets": at}
    for at in dict.fromkeys(((before - 8 * count) & ~7, behind + -behind % 8)):
        addresses = words(at, "Q", 8)
        if addresses is not None:
            yield "absolute", addresses, {"kallsyms_addresses": at}


def _seqs_of_names(image: Bytes, tables: _Tables, places: dict[str, int]) -> dict[str, int]:
    """Offset of ``seqs_of_names``: symbol numbers ordered by name, three bytes each, big-endian."""
    behind = max(places.values())
    size = {"kallsyms_relative_base": 8, "kallsyms_addresses": 8 * tables.count}
    behind += next((size[name] for name in size if name in places), 4 * tables.count)
    for start in dict.fromkeys((tables.markers_end + -tables.markers_end % 8, behind, behind + -behind % 8)):
        raw = bytes(image[start : start + 3 * tables.count])
        if start + len(raw) > tables.token_table > start or len(raw) < 3 * tables.count:
            continue
        if max(int.from_bytes(raw[at : at + 3], "big") for at in range(0, len(raw), 3)) == tables.count - 1:
            return {"kallsyms_seqs_of_names": start}
    return {}


def _plausible(names: list[str], values: list[int], text: int, *, exact: bool) -> bool:
    if sorted(values) != values:
        return False
    try:
        place = next(values[i] for i, name in enumerate(names) if name[1:] == "_text")
    except StopIteration:
        try:
            place = values[names.index("T_stext")]
        except ValueError:
            return False
    return place == text if exact else place >= KERNEL_SPACE
