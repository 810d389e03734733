"""What programs/looks.c wrote down: values of fields, each with the moment at which a process had it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TICK_NS = 10_000_000
"""/proc has start times in these."""
_DYING = (b"Z", b"X")
_SPACES = ("pid", "mnt", "net", "uts", "ipc", "cgroup", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look; ``values`` has what could be read, by the names of fields.py.

    A path that a live process has and /proc cannot say is None: it is longer than 4095 bytes.
    """

    why: str
    begin: int
    end: int
    pid: int
    start: int
    """Of the process, in ticks."""
    values: dict[str, Any] = field(default_factory=dict)
    outside: dict[str, Any] = field(default_factory=dict)
    """Paths as the reader saw them, where that is not as from the process's own root."""

    @property
    def held(self) -> bool:
        """Whether the process stood still meanwhile, before its image's own first instruction."""
        return self.why == "held"


def parse(text: str) -> tuple[list[Look], int]:
    """Every look that is whole, in order, and how often the reader's queue overflowed."""
    looks: list[Look] = []
    lost = 0
    for line in text.splitlines():
        if line.startswith("lost"):
            lost += 1
        elif line.endswith(" .") and " torn=" not in line:
            looks += _look(line.split(" "))
    return looks, lost


def _look(words: list[str]) -> Iterator[Look]:
    why, begin, pid, *named, end, _ = words
    raw = {name: bytes.fromhex(data) for name, _, data in (word.partition("=") for word in named)}
    found = re.fullmatch(rb"\d+ \((.*)\) (.*)\n?", raw.get("stat", b""), re.DOTALL)
    status = dict(re.findall(rb"(?m)^(\w+):\t(.*)$", raw.get("status", b"")))
    if not found or b"NSpid" not in status or int(status[b"Tgid"]) != int(pid):
        return
    stat = found[2].split()
    values: dict[str, Any] = {
        "name": _text(found[1]),
        "parent.pid": int(stat[1]),
        "group_leader.pid": int(stat[2]),
        "session_leader.pid": int(stat[3]),
        "ns_pid": int(status[b"NSpid"].split()[-1]),
    }
    for name, key in (("user", b"Uid"), ("group", b"Gid")):
        real, effective, *_ = status[key].split()
        values[f"real_{name}.id"], values[f"{name}.id"] = real.decode(), effective.decode()
    if raw.get("cmdline"):
        values["args"] = [_text(word) for word in raw["cmdline"].removesuffix(b"\0").split(b"\0")]
    outside: dict[str, Any] = {}
    for name, key in (("executable", "exe"), ("working_directory", "cwd")):
        path = raw.get(f"my_{key}", raw.get(key))
        if path is not None:
            values[name] = _text(path)
            if raw.get(key, path) != path:
                outside[name] = _text(raw[key])
        elif stat[0] not in _DYING:
            values[name] = None
    if group := re.search(rb"(?m)^0::(.*)$", raw.get("cgroup", b"")):
        values["cgroup"] = _text(group[1])
    for space in _SPACES:
        if inode := re.search(rb"\[(\d+)\]", raw.get(f"ns_{space}", b"")):
            values[f"namespaces.{space}"] = int(inode[1])
    yield Look(
        why=why,
        begin=int(begin),
        end=int(end),
        pid=int(pid),
        start=int(stat[19]),
        values=values,
        outside=outside,
    )


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
