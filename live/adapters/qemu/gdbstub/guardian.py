"""A small process that lets the guest go when its watcher is killed; run as ``python -I -S guardian.py``.

Theory of operation
-------------------
QEMU's stub does nothing when its client goes away: a guest that was stopped stays stopped, breakpoints stay.
So the watcher starts this process and shares three descriptors with it: the stub's socket, a pipe, and a page
of memory with the time until which a stop is in order (0: the guest runs).  The end of the pipe without a
farewell (the watcher died), or a stop far beyond its time (the watcher hangs), make it interrupt the guest
(0x03; ignored while it stands) and detach, which removes every breakpoint and lets it run.

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
_POLL_MS = 200
_U64 = struct.Struct("<Q")
DEADLINE_AT, TAKEN_AT = 0, 8


def release(stub: socket.socket) -> None:
    """Interrupt and detach, whatever state the stub is in."""
    stub.settimeout(1)
    try:
        stub.sendall(b"\x03")
        time.sleep(0.05)  # a byte that arrives while the guest runs stops it, and is not looked at
        stub.sendall(b"$D#44")
        stub.settimeout(0.5)
        while b"$OK#9a" not in stub.recv(4096):
            pass
    except OSError:
        pass  # the guest is gone, or answered late: there is nothing else to be done


def watch(stub: socket.socket, pipe: int, page: int) -> bool:
    """Wait for the end; True if the guest has to be released."""
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while True:
        if poller.poll(_POLL_MS):
            return os.read(pipe, 1) != FAREWELL
        deadline = _U64.unpack(os.pread(page, 8, DEADLINE_AT))[0]
        if deadline and time.monotonic_ns() > deadline + GRACE_NS:
            os.pwrite(page, _U64.pack(1), TAKEN_AT)
            return True


def main(arguments: list) -> int:  # type: ignore[type-arg]  # runs on any Python 3, as it is
    """Arguments: descriptors of the stub's socket, the pipe, the page."""
    stub_number, pipe, page = (int(word) for word in arguments)
    with socket.socket(fileno=stub_number) as stub:
        if watch(stub, pipe, page):
            release(stub)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
