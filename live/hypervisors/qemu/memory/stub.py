"""Guest memory through QEMU's gdb stub: for whoever may use the monitor, and nothing else of QEMU.

Theory of operation
-------------------
The stub answers only while the guest stands.  So each read stops the guest through the monitor, reads,
and lets it go on (`live.hypervisors.qemu.monitor.pause`; a guest that somebody else has paused stays paused).
Stopping and going on takes about a millisecond whatever is read, a packet of 2 KiB 30 us; few stops that
read much are cheap, many that read little are not.  Therefore:

* What was read is kept until `refresh`, or for a second: a *generation*.  Within it every read of a line
  (2 KiB, a packet) gives the same bytes.  Consumers refresh where they want the present: a look at the
  task list does at its beginning, and before it compares the kernel's counters.
* A miss reads everything that was wanted after the same miss in the generation before (`following`): the
  second look at a hundred tasks is one stop for the counters and one for all tasks, which therefore are of
  one moment.  A miss that never happened before reads its surroundings.  At 107 tasks a snapshot takes 3
  stops so, instead of 35, and the guest stands a third of the time (``python -m tests.bench stub_memory``).
* More than `_LARGE` bytes at once are not kept, and are read in pieces, between which the guest runs as
  long as it stood.

The longest stop is one of `_AHEAD` lines or of a piece: 60 ms where the above was measured, under TCG.
`rest` tells who looks at intervals how long to leave the guest alone, so that it stands for a tenth of
the time at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from live.core.errors import GuestGone
from live.core.memory import Segment
from live.hypervisors.host.segments import Segments
from live.hypervisors.qemu.gdbstub.needs import Owner
from live.hypervisors.qemu.gdbstub.physical import LINE, PhysicalClient
from live.hypervisors.qemu.gdbstub.server import StubConnection
from live.hypervisors.qemu.memory.following import Following
from live.hypervisors.qemu.memory.host import ram
from live.hypervisors.qemu.monitor.client import Monitor
from live.hypervisors.qemu.monitor.pause import Pause

NO_TRAPS = (
    "guest memory is read through the gdb stub, for which the guest is stopped: that works in poll mode "
    "only; run as root, or with CAP_SYS_PTRACE, for the other modes"
)
"""Why traps cannot be had with this memory: a vCPU that is held cannot be stopped."""
LIMIT = 1.0
"""Seconds a stop may last before the watchdog ends it."""
_SHIFT = LINE.bit_length() - 1
_CLUSTER = 16
"""Lines around an unknown miss that are read with it: 32 KiB, a slab of task_structs."""
_AHEAD = 2048
"""Lines that one stop reads at most: 4 MiB."""
_LARGE = 64 << 10
_PIECE = 1 << 20
"""Bytes of a large read between two rests of the guest."""
_GENERATION_S = 1.0
_MAXLINES = 1 << 15
"""Lines that a generation keeps: 64 MiB."""
_REST = 9
"""So many times as long as it stood the guest is to run."""


class StubMemory(Segments):
    """See the module.  Safe to use from several threads."""

    flat: memoryview | None = None

    def __init__(self, segments: Sequence[Segment], stub: StubConnection, pause: Pause, reason: str) -> None:
        """Owns ``stub``; ``reason`` says why memory is read in no better way.

        Raises `TargetError` (no stub of QEMU), `GuestGone`.
        """
        super().__init__(segments)
        self._stub = stub
        self._pause, self._reason = pause, reason
        with pause.standing(LIMIT):
            self._client: PhysicalClient | None = PhysicalClient(stub.wire)
        self._lock = threading.RLock()
        self._lines: dict[int, bytes] = {}
        self._following = Following()
        self._began = time.monotonic()
        self.stops, self.stood_s = 0, 0.0
        """How often the guest was stopped, and for how long in all."""
        self._rested_s = 0.0

    @property
    def description(self) -> str:
        """For the output, with the price so far."""
        each = 1000 * self.stood_s / max(self.stops, 1)
        return (
            f"read through QEMU's gdb stub ({self._reason}); the guest stands for each read, "
            f"{each:.1f} ms on average so far, a tenth of the time at most while it is watched"
        )

    def read(self, gpa: int, length: int) -> bytes:
        """See `live.core.memory.MemoryReader.read`.  Raises `TargetError` if QEMU does not answer."""
        self.find(gpa, length)
        with self._lock:
            if length > _LARGE:
                return self._large(gpa, length)
            if time.monotonic() - self._began > _GENERATION_S or len(self._lines) > _MAXLINES:
                self.refresh()
            first, last = gpa >> _SHIFT, max(gpa + length - 1, gpa) >> _SHIFT
            lines, wanted = self._lines, self._following.wanted
            for number in range(first, last + 1):
                if number not in lines:
                    self._miss(number, last)
                wanted.setdefault(number)
            if first == last:
                offset = gpa & (LINE - 1)
                return lines[first][offset : offset + length]
            data = b"".join([lines[number] for number in range(first, last + 1)])
            offset = gpa & (LINE - 1)
            return data[offset : offset + length]

    def refresh(self) -> None:
        """What is read from now on is the guest's memory as it is from now on."""
        with self._lock:
            self._following.turn()
            self._lines = {}
            self._began = time.monotonic()

    def rest(self) -> float:
        """Seconds for which the guest is to be left alone, for what was read since the last call."""
        stood, self._rested_s = self.stood_s - self._rested_s, self.stood_s
        return _REST * stood

    def _miss(self, number: int, last: int) -> None:
        wanted = dict.fromkeys(range(number, last + 1))
        followed = self._following.missed(number)
        wanted |= dict.fromkeys(self._around(number) if followed is None else followed)
        missing = [line for line in wanted if line not in self._lines][:_AHEAD]
        self._lines.update(zip(missing, self._stop_and_read(missing), strict=True))

    def _around(self, number: int) -> range:
        first = number & -_CLUSTER
        one = self.segments[self.find(number << _SHIFT, 1)]
        return range(max(first, one.start >> _SHIFT), min(first + _CLUSTER, one.end >> _SHIFT))

    def _stop_and_read(self, lines: Iterable[int]) -> list[bytes]:
        client = self._client
        if client is None:
            raise GuestGone("The guest's memory was closed; attach to the guest again.")
        before = time.monotonic()
        with self._pause.standing(LIMIT) as stopped:
            data = client.read([line << _SHIFT for line in lines])
        if stopped:
            self.stops += 1
            self.stood_s += time.monotonic() - before
        return data

    def _large(self, gpa: int, length: int) -> bytes:
        parts: list[bytes] = []
        start, end = gpa & -LINE, gpa + length
        stood = self.stood_s
        for at in range(start, end, _PIECE):
            time.sleep(self.stood_s - stood)
            stood, until = self.stood_s, min(at + _PIECE, end)
            parts += self._stop_and_read(range(at >> _SHIFT, (until + LINE - 1) >> _SHIFT))
        return b"".join(parts)[gpa - start : end - start]

    def populated(self) -> Sequence[Segment]:
        """All of RAM; which parts were touched is not known."""
        return self.segments

    def close(self) -> None:
        """Hang up; the guest runs on, or stands, as before.  Safe to call twice."""
        self._client = None
        self._stub.close()


def open_stub_memory(monitor: Monitor, owner: Owner, pause: Pause, reason: str) -> StubMemory:
    """The memory of a guest through its gdb stub, started for the purpose unless there is an idle one.

    ``monitor`` and ``pause`` are the guest's, and stay the caller's; ``reason`` says why memory is read in no
    better way.  Raises `TargetError` (the stub is in use, or QEMU refuses), `GuestGone`.
    """
    segments = ram(monitor)
    with pause.standing(LIMIT):  # a connection stops the guest
        stub = StubConnection(monitor, owner)
        try:
            return StubMemory(segments, stub, pause, reason)
        except BaseException:
            stub.close()
            raise
