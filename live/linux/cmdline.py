"""The command line of a process, as /proc/PID/cmdline has it (fs/proc/base.c: get_mm_cmdline).

It is what lies between `arg_start` and `arg_end`.  A program may write a title over it (setproctitle of
nginx, sshd, postgres), which goes on into the environment behind.  It is taken for a title if the last byte
of the arguments is not 0: then it is one string, up to its NUL, no longer than a page, and no longer than
arguments and environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from live.core.memory import PAGE_SIZE

MAX_ARGS = 128 * 1024
"""Bytes of a command line that are kept by default: MAX_ARG_STRLEN, the longest single argument."""

Read = Callable[[int, int], bytes]
"""From a user address and a length to what can be read there, up to the first page that is not in RAM."""


class Strings(NamedTuple):
    """Members of an `mm_struct`: user addresses, of the arguments and of the environment."""

    arg_start: int
    arg_end: int
    env_start: int
    env_end: int


class CommandLine(NamedTuple):
    """``raw``: strings, each ended by a NUL, the last one perhaps not.  ``truncated``: there is more."""

    raw: bytes
    truncated: bool = False

    @property
    def args(self) -> tuple[str, ...] | None:
        """The arguments; bytes that are no UTF-8 as surrogates.  None: there are none."""
        if not self.raw:
            return None
        parts = self.raw.removesuffix(b"\0").split(b"\0")
        return tuple(part.decode("utf-8", "surrogateescape") for part in parts)


def command_line(at: Strings, read: Read, most: int = MAX_ARGS) -> CommandLine:
    """The command line whose strings lie ``at`` these addresses, ``most`` bytes of it at most."""
    length = at.arg_end - at.arg_start
    if length <= 0:
        return CommandLine(b"")
    found = read(at.arg_start, min(length, most))
    last = found[-1:] if len(found) == length else read(at.arg_end - 1, 1)
    if last not in (b"", b"\0"):
        found, length = _title(at, read)
    return CommandLine(found[:most], len(found[:most]) < length)


def _title(at: Strings, read: Read) -> tuple[bytes, int]:
    """The title, and how long it is; that is more if it goes on where RAM has no page."""
    adjoins = at.env_start == at.arg_end and at.env_end >= at.env_start
    most = min((at.env_end if adjoins else at.arg_end) - at.arg_start, PAGE_SIZE)
    found = read(at.arg_start, most)
    end = found.find(b"\0")
    return (found[: end + 1], end + 1) if end >= 0 else (found, most)
