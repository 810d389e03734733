"""The lab's end of the command channel: see programs/init.c for the other end and for the format.

A thread takes what the guest sends, so a guest never waits for us; callers wait on jobs. The thread also
*starts* QEMU: the kernel kills QEMU when the thread that started it ends (PR_SET_PDEATHSIG), so that has to
be a thread that lives exactly as long as the guest.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .errors import CommandFailed, GuestError, GuestTimeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command in the guest ended."""

    data: bytes
    """stdout and stderr, as they came."""
    status: int
    """As of wait(2)."""

    @property
    def output(self) -> str:
        """``data`` as text."""
        return self.data.decode(errors="replace")

    @property
    def code(self) -> int:
        """Exit code, or minus the signal's number."""
        return os.waitstatus_to_exitcode(self.status)


class Job:
    """A command that was started in the guest."""

    def __init__(self, channel: Channel, number: int, what: str) -> None:
        self._channel = channel
        self._number = number
        self._what = what
        self.chunks: list[bytes] = []
        self.pid: int | None = None
        self.status: int | None = None

    @property
    def output(self) -> str:
        """What it has written so far."""
        return b"".join(self.chunks).decode(errors="replace")

    @property
    def running(self) -> bool:
        return self.status is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its whole process group."""
        self._channel.send("sig", self._number, str(number).encode())

    def wait(self, timeout: float | None = 60, *, check: bool = True) -> Result:
        """Wait for its end; with *check*, raise CommandFailed unless it is exit code 0."""
        self._channel.wait_for(lambda: self.status is not None, timeout, self._what)
        result = Result(data=b"".join(self.chunks), status=self.status or 0)
        if check and result.status:
            raise CommandFailed(
                f"in the guest, {self._what!r} ended with {result.code}: {result.output[-2000:]}"
            )
        return result

    def wait_pid(self, timeout: float = 60) -> int:
        """Wait until it has been forked; its pid in the guest."""
        self._channel.wait_for(lambda: self.pid is not None or self.status is not None, timeout, self._what)
        return self.pid or 0


class Channel:
    """Commands to the guest's first process, and what comes back."""

    def __init__(self, launch: Callable[[], None], diagnose: Callable[[str], str]) -> None:
        """*launch* starts QEMU; *diagnose* adds to a sentence what the guest's console says."""
        # The lab's end stays here; QEMU inherits the other end, so there is no path, and no moment with
        # nobody there.
        self._socket, self.guest_end = socket.socketpair()
        self._launch = launch
        self._diagnose = diagnose
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._jobs: dict[int, Job] = {0: Job(self, 0, "boot")}
        self._next = 1
        self._gone = False
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="guest-channel", daemon=True)

    def open(self) -> None:
        """Start the thread, and with it QEMU."""
        launched = threading.Event()
        self._launched = launched
        self._thread.start()
        launched.wait()
        if self._failed:
            raise self._failed

    def wait_ready(self, timeout: float) -> None:
        """Wait for the prompt of the guest's first process."""
        self.wait_for(lambda: self._jobs[0].status is not None, timeout, "boot")

    def booted(self) -> None:
        """Say that the guest's first process is at its prompt already, with jobs of somebody else perhaps."""
        with self._changed:
            self._jobs[0].status = 0
            self._next = 1_000_000  # theirs have smaller numbers

    def start(self, argv: list[str], what: str) -> Job:
        return self._submit("run", b"".join(word.encode() + b"\0" for word in argv), what)

    def put(self, path: str, data: bytes) -> Job:
        return self._submit("put", path.encode() + b"\0" + data, f"write {path}")

    def _submit(self, word: str, payload: bytes, what: str) -> Job:
        with self._changed:
            number, self._next = self._next, self._next + 1
            job = self._jobs[number] = Job(self, number, what)
        self.send(word, number, payload)
        return job

    def send(self, word: str, number: int, payload: bytes) -> None:
        """Send one message."""
        try:
            with self._sending:
                self._socket.sendall(b"%s %d %d\n" % (word.encode(), number, len(payload)) + payload)
        except OSError as error:
            raise GuestError(self._diagnose("the guest's QEMU is gone")) from error

    def wait_for(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait until *condition* holds, which is about a job; raise if QEMU ends first or time is over."""
        with self._changed:
            if self._changed.wait_for(lambda: condition() or self._gone, timeout):
                if condition():
                    return
                raise GuestError(self._diagnose(f"the guest's QEMU ended during {what!r}"))
        raise GuestTimeout(self._diagnose(f"the guest did not finish {what!r} within {timeout:g} s"))

    def close(self) -> None:
        """Stop listening. QEMU must have ended, or it ends with the thread."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._launch()
        except BaseException as error:
            self._failed = error
            return
        finally:
            self.guest_end.close()
            self._launched.set()
        try:
            with self._socket.makefile("rb") as stream:
                while header := stream.readline():
                    self._message(header, stream.read)
        except (OSError, ValueError):
            pass  # the port closed in the middle of a message
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _message(self, header: bytes, read: Callable[[int], bytes]) -> None:
        word, number, value = header.split()
        data = read(int(value)) if word == b"out" else b""
        with self._changed:
            job = self._jobs.get(int(number))
            if job is None:
                return
            if word == b"out":
                job.chunks.append(data)
            elif word == b"pid":
                job.pid = int(value)
            elif word == b"end":
                job.status = int(value)
            self._changed.notify_all()
