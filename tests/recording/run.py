"""`pse record` as a user runs it, while a guest works."""

import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from live.hypervisors.qemu.plugin import build
from tests.guest import Guest, GuestSpec
from tests.watch import PSE, environment

WORK = (
    ("fork-exit", "2", "5"),
    ("fork-exec", "2"),
    ("vfork-exec", "2"),
    ("exec-fail", "2"),
    ("exec-chain", "3"),
    ("exec-thread", "2"),
    ("script", "2"),
    ("killed", "2"),
    ("segv", "2"),
    ("zombie", "2", "50"),
    ("daemon", "2"),
    ("threads", "2"),
    ("pid-namespace", "2"),
)


@contextmanager
def trappable(spec):
    """A guest of that spec, started with the trap plugin."""
    with tempfile.TemporaryDirectory(prefix="pse-") as directory:
        argument = build.argument(Path(directory) / "trap.sock")
        values = {field.name: getattr(spec, field.name) for field in fields(GuestSpec)}
        with Guest(replace(spec, **{**values, "plugins": (argument,)})) as guest:
            yield guest


def record(guest, path, *options, work=WORK, settle=0.7, stopped=0.0):
    """Record while the guest works; returns (its JSON lines, what it said).

    The recorder is stopped (SIGSTOP) for the first ``stopped`` seconds of the work.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*PSE, "record", str(guest.monitor), "-o", str(path), "--json", *options],
            stdout=out,
            stderr=errors,
            env=environment(),
        )
        try:
            deadline = time.monotonic() + 60
            while not out.tell() and not Path(f"/proc/self/fd/{out.fileno()}").stat().st_size:
                if process.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    raise AssertionError(errors.read())
                time.sleep(0.05)
            time.sleep(settle)
            if stopped:
                process.send_signal(signal.SIGSTOP)
                threading.Timer(stopped, process.send_signal, (signal.SIGCONT,)).start()
            for command in work:
                guest.start(list(command) if not isinstance(command, str) else command).wait(60, check=False)
            time.sleep(settle)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        out.seek(0)
        errors.seek(0)
        said = errors.read()
        assert process.returncode == 0, said
        return out.read(), said
