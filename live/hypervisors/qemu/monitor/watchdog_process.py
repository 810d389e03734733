"""A small process that lets the guest go when its watcher is killed; run as ``python -I -S FILE``.

Theory of operation
-------------------
QEMU does nothing when the client of its gdb stub or of its monitor goes away: a guest that was stopped
stays stopped, breakpoints stay.  So the watcher starts this process and shares three descriptors with it:
the socket of the stub or of the monitor, a pipe, and a page of memory with the time until which a stop is
in order (0: the guest runs).  It acts at the end of the pipe without a farewell (the watcher died), and
when a stop lasts far beyond its time, or is not even noticed (the watcher hangs, or was suspended):

* gdb stub: interrupt the guest (0x03; ignored while it stands) and detach, which removes every breakpoint and
  lets it run.
* monitor: ``cont``, if the watcher had stopped the guest.  A pause by somebody else is not ours to end.
* A watcher that hung may wake up, and stop the guest once more by what it still has to say to a gdb stub: so
  ``cont`` is said again, by the watcher when it has found out; and by us, whatever we said, when it is gone.

Standard library only, and little of it: it has to start in a few milliseconds.
"""

import os
import select
import socket
import struct
import sys
import time

FAREWELL = b"q"
GRACE_NS = 500_000_000
"""How far beyond its time a stop may last; the watcher's own limit comes first."""
FOREVER = (1 << 64) - 1
"""A time that never comes."""
_POLL_MS = 200
_UNREAD = 10
"""Polls in a row at which the stub has said something that the watcher does not read: 2 s.  (Counted, as a
machine that stands still as a whole makes nobody late.)"""
_U64 = struct.Struct("<Q")
DEADLINE_AT, TAKEN_AT, RESUMED_AT = 0, 8, 16
"""In the page: until when a stop is in order, whether we acted, how often the watcher let the guest run."""

_STUB = "gdb"
# What is written to a monitor, and the end of its answer.  HMP echoes what it is told, so it is asked for a
# number that it prints otherwise.
_CONT = {
    "qmp": (b'{"execute": "cont", "id": "pse-watchdog"}\n', b'"pse-watchdog"'),
    "hmp": (b"cont\nprint /d 0x70736521\n", b"1886610721\r\n(qemu) "),
}
# The watcher may have died within a command: 0xff makes QMP's parser begin anew (qmp-spec, "Guest agent/QMP
# synchronization"), and a newline ends what HMP has of it.  To one that lives this would be an error.
_DEAD = {"qmp": b"\xff", "hmp": b"\n"}


def tell(shared: socket.socket, words: bytes, answer: bytes, alive: "int | None") -> None:
    """Say it, and wait until QEMU has heard: it drops what a client that hung up has sent.

    However long that takes, unless QEMU ends, or the watcher (``alive``: its pipe) says farewell, or dies.
    """
    select.select([], [shared], [])
    shared.send(words)
    readable = [shared.fileno()] if alive is None else [shared.fileno(), alive]
    heard = b""
    while answer not in heard:
        if alive in select.select(readable, [], [])[0]:
            return
        try:
            chunk = shared.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the watcher woke up, and took it
            continue
        if not chunk:
            return
        heard = heard[-4096:] + chunk


def release(shared: socket.socket, kind: str, alive: "int | None") -> None:
    """Let the guest go, whatever state its stub or monitor is in.  ``alive``: as above; None: it has died."""
    try:
        if kind != _STUB:
            words, answer = _CONT[kind]
            tell(shared, (_DEAD[kind] if alive is None else b"") + words, answer, alive)
        else:
            shared.send(b"\x03")
            time.sleep(0.05)  # a byte that arrives while the guest runs stops it, and is not looked at
            tell(shared, b"$D#44", b"$OK#9a", alive)
    except OSError:
        pass  # QEMU has ended


def over(pipe: int) -> bool:
    """Wait for the pipe's end, or what is in it; True if the watcher did not say farewell."""
    return os.read(pipe, 1) != FAREWELL


def watch(pipe: int, page: int, stub: "socket.socket | None") -> tuple[bool, bool]:
    """Wait for the end: whether there is something to do, and whether the watcher is still there, hanging.

    ``stub``: the stub's socket, if there is one.
    """
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    unread, resumed = 0, -1
    while True:
        if poller.poll(_POLL_MS):
            return over(pipe), False
        before, resumed = resumed, _word(page, RESUMED_AT)
        unread = unread + 1 if stub and said(stub) and resumed == before else 0
        deadline = _word(page, DEADLINE_AT)
        if unread >= _UNREAD or (deadline and time.monotonic_ns() > deadline + GRACE_NS):
            os.pwrite(page, _U64.pack(1), TAKEN_AT)
            return True, True


def said(stub: socket.socket) -> bool:
    """Whether there is an answer of the stub that nobody has read; acknowledgements are none."""
    # recv() of a socket object that has a timeout waits for it, whatever the flags say; this one has none.
    peek = socket.socket(fileno=stub.fileno())
    try:
        return b"$" in peek.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False
    finally:
        peek.detach()


def _word(page: int, at: int) -> int:
    word: int = _U64.unpack(os.pread(page, 8, at))[0]
    return word


def main(arguments: list) -> int:  # type: ignore[type-arg]  # runs on any Python 3, as it is
    """Arguments: what the socket is of (gdb, qmp, hmp); descriptors of the socket, the pipe, the page."""
    kind = arguments[0]
    number, pipe, page = (int(word) for word in arguments[1:])
    with socket.socket(fileno=number) as shared:
        wanted, hangs = watch(pipe, page, shared if kind == _STUB else None)
        if not wanted or (kind != _STUB and not _word(page, DEADLINE_AT)):
            return 0
        release(shared, kind, pipe if hangs else None)
        if hangs and over(pipe):
            release(shared, kind, None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
