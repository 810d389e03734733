"""A guest with something to see for every plugin, images of it, and `vol` as a user starts it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.guest import Guest
from tests.guest.apt import Apt

HISTORY = ("echo first secret", "cd /proc/1", "true /tmp/evidence")
LISTENING = 4444
# Only an interactive bash writes the time stamps by which the plugin finds its history.
_BASH = "(printf '{}\\n'; exec sleep 1000) | /tmp/bash --norc --noediting -i"


@dataclass(frozen=True)
class Truth:
    """What the guest itself said when its memory was taken."""

    users: dict[int, str]
    """pid -> comm of processes."""
    threads: dict[int, str]
    """pid -> comm of kernel threads; what a worker's name begins with only."""
    modules: int


def prepare(guest: Guest, *, bash: bool = True) -> None:
    """Start a shell with a history, a listening socket, an environment, and let something end."""
    if bash:
        files = Apt("bookworm").unpack("bash-static")
        guest.push(files / "bin" / "bash-static", "/tmp/bash")
        guest.start(_BASH.format("\\n".join(HISTORY)))
    guest.start(f"nc -l -p {LISTENING}")
    guest.start(["/bin/sh", "-c", "SECRET=treasure exec sleep 4321"])
    guest.run("sh -c 'exit 7' || true")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        names = [entry.comm for entry in guest.proc_list()]
        if {"sleep", "nc"} <= set(names) and (not bash or (names.count("sleep") >= 2 and "bash" in names)):
            return
        time.sleep(0.3)
    raise TimeoutError("the guest's workload did not come up")


def truth(guest: Guest) -> Truth:
    """Ask the guest, once its list has held still for a moment."""
    modules = len(guest.run("cat /proc/modules 2>/dev/null || true").output.splitlines())
    entries = guest.proc_list()
    for _ in range(20):
        before, entries = entries, guest.proc_list()
        if {(one.pid, one.comm) for one in before} == {(one.pid, one.comm) for one in entries}:
            break
        time.sleep(0.5)
    return Truth(
        users={entry.pid: entry.comm for entry in entries if not entry.kernel},
        threads={entry.pid: entry.comm.partition("/")[0] for entry in entries if entry.kernel},
        modules=modules,
    )


def copy_ram(guest: Guest, path: Path) -> Path:
    """The file that is the guest's RAM (no hole below 4 GiB in it), as a sparse copy."""
    size = guest.spec.memory << 20
    for fd in Path(f"/proc/{guest.pid}/fd").iterdir():
        if os.readlink(fd).startswith("/memfd:") and fd.stat().st_size == size:
            with fd.open("rb", buffering=0) as source, path.open("wb") as target:
                _copy_data(source.fileno(), target.fileno(), size)
            return path
    raise FileNotFoundError("this guest's RAM is not a memfd")


def _copy_data(source: int, target: int, size: int) -> None:
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # no data behind `at`
            break
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.pwrite(target, os.pread(source, min(end - at, 1 << 22), at), at)
    os.ftruncate(target, size)


def packs() -> list[Path]:
    """Directories for ``vol -p``: the pack that is installed (or this checkout), and the checkout's."""
    spec = importlib.util.find_spec("volplugins")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    # An editable install adds what is no directory.
    found = [next(Path(one).resolve() for one in spec.submodule_search_locations if Path(one).is_dir())]
    if "PSE_CHECKOUT" in os.environ:
        # What `make test` installed is tested without the checkout, but for this.
        found.append(Path(os.environ["PSE_CHECKOUT"]) / "volplugins")
    return found


@dataclass(frozen=True)
class Run:
    """What `vol` did: rows are JSON objects, whatever the plugin."""

    status: int
    rows: list[dict]
    errors: str
    seconds: float
    output: str


def command(pack: Path, renderer: str = "jsonlines") -> list[str]:
    """How `vol` begins."""
    return [str(Path(sys.executable).parent / "vol"), "-q", "-p", str(pack), "-r", renderer]


def vol(
    *arguments: str, cwd: Path, symbols: Path, pack: Path, renderer: str = "jsonlines", **options: str
) -> Run:
    """Run `vol -p PACK -r RENDERER ARGUMENTS` from another directory, with a symbol cache of its own."""
    environment = {**os.environ, "PSE_SYMBOLS": str(symbols), "PYTHONPATH": "", **options}
    began = time.monotonic()
    done = subprocess.run(
        [*command(pack, renderer), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    seconds = time.monotonic() - began
    rows = []
    if renderer == "jsonlines":
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Run(done.returncode, rows, done.stderr, seconds, done.stdout)
