"""`pse watch --json` as a user runs it: a process of its own, its lines, its messages, its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PSE = (sys.executable, "-m", "live.cli.main")


def environment() -> dict[str, str]:
    """Ours, with the installed packages found first and nothing of the terminal."""
    here = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": here, "TERM": "dumb", "COLUMNS": "200"}


def pse(
    *arguments: str, timeout: float = 60, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `pse` to its end, under the command ``prefix`` if there is one."""
    return subprocess.run(
        [*prefix, *PSE, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(),
    )


class Watch:
    """A running ``pse watch --json``; a context manager that ends it as Ctrl-C does.

    Or another ``verb`` that shows events.  It runs under the command ``prefix`` if there is one, in the
    directory ``cwd``, with ``env`` (or ours).
    """

    def __init__(
        self,
        *arguments: str,
        verb: str = "watch",
        prefix: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        self.documents: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [*prefix, *PSE, verb, "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env or environment(),
            cwd=cwd,
        )
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_lines(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.documents.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr
        self._errors.extend(self._process.stderr)

    def __enter__(self) -> Watch:
        """Returns when the first events, of what is running, have come."""
        deadline = time.monotonic() + 60
        while not self.documents:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._finish()
                raise AssertionError(f"pse showed nothing: {self.errors}")
            time.sleep(0.02)
        time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._finish()

    def _finish(self) -> None:
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        for thread in self._threads:
            thread.join(10)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    @property
    def missed(self) -> int:
        """How many tasks it says that it missed, at its end."""
        (count,) = re.findall(r"(\d+) tasks missed", self.errors)
        return int(count)

    def shown(self, pid: int, kind: str, timeout: float = 60) -> dict[str, Any]:
        """The first event of a process with this ``event.type``; waits for it."""
        deadline = time.monotonic() + timeout
        while True:
            for document in list(self.documents):
                if document["process"]["pid"] == pid and kind in document["event"]["type"]:
                    return document
            if time.monotonic() >= deadline:
                raise AssertionError(f"no {kind} of process {pid} within {timeout:g} s: {self.errors}")
            time.sleep(0.02)

    def wait(self, timeout: float = 30) -> int:
        """Until it ends by itself; its exit status."""
        status = self._process.wait(timeout)
        for thread in self._threads:
            thread.join(10)
        return status
