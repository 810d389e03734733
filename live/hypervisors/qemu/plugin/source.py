"""`TrapSource` over the trap plugin.

Theory of operation: trap.c and the headers beside it.  Events come through the ring in shared memory, and
nothing else; while we sleep, an eventfd says that a held one is in it.  What is merely recorded does not wake
us, so a wait looks at the ring again after `_GLANCE_S`.  While traps are likely we poll instead: adaptive.py.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import replace

from live.core.errors import GuestGone, NoTarget, NotPermitted, TargetError
from live.core.machine import Architecture
from live.core.memory import GuestPhysical
from live.core.traps import AsidChange, CodeHit, Syscall, Trap, TrapCounters, TrapRequest
from live.hypervisors.qemu.plugin import protocol
from live.hypervisors.qemu.plugin.adaptive import AdaptivePoll
from live.hypervisors.qemu.plugin.settled import SettledTable

DEFAULT_HOLD = 1.0
"""Seconds that a vCPU is held at most, of time in which the reader gets a CPU (events.h)."""
MACHINE = "x86_64"
"""The architecture that the plugin is for, as `Architecture.name` has it."""
_GLANCE_S = 0.02
_CONNECT_TIMEOUT_S = 2.0
_ARM_TIMEOUT_S = 10.0
"""For a request to be in force that needs all code made anew: milliseconds, unless QEMU hangs."""
_NUDGE_S = 0.05
_U64 = struct.Struct("<Q")


class PluginSource:
    """The reader of one guest's plugin.  The plugin serves one at a time."""

    mode = "plugin"
    supports: frozenset[type] = frozenset({AsidChange, Syscall, CodeHit})
    holds_all = False
    prefers: type = CodeHit
    guarantee = (
        "Every trap is taken, on every vCPU, and read before the guest's next system call (other than to "
        "wait for a new child); no held one is dropped, and no vCPU waits longer than the limit "
        "for us if we hang."
    )

    def __init__(
        self,
        path: str,
        machine: Architecture,
        hva: Callable[[int, int], int],
        hold: float = DEFAULT_HOLD,
        nudge: Callable[[], None] | None = None,
    ) -> None:
        """Connect to the plugin's socket at ``path``.

        ``machine``: the guest's architecture.  ``hva(gpa, length)``: the address in QEMU's process of
        ``length`` bytes of guest memory; raises `MemoryFault` for what is no RAM.  ``hold``: for how many
        seconds a vCPU is held at most.
        ``nudge`` makes every vCPU stand for a moment.  Without it, one that never sleeps and runs no code
        that it has not run before may keep `arm` waiting.

        Raises `NoTarget`, `NotPermitted`, `TargetError` (another architecture, in use by another reader,
        another version).
        """
        if machine.name != MACHINE:
            raise TargetError(
                f"The trap plugin is for {MACHINE}, and this guest is {machine.name}; use another mode."
            )
        self.description = f"TCG plugin at {path}"
        self._machine, self._nudge = machine, nudge
        self._words: dict[int, GuestPhysical] = {}
        """Address in QEMU's process -> gpa of the words that were ever compared."""

        @functools.lru_cache(protocol.MAX_WORDS)
        def address_of(gpa: int, length: int) -> int:
            address = hva(gpa, length)
            self._words[address] = GuestPhysical(gpa)
            return address

        self._hva = address_of
        self._armed = TrapRequest()
        self._hold_ms = max(1, round(hold * 1000))
        self._delivered = 0
        self._held: dict[int, tuple[int, bool]] = {}
        """vCPU -> sequence, and whether it is behind a fence."""
        self._descriptors: list[int] = []
        self._socket = _connect(path)
        try:
            hello, self._descriptors, _, _ = socket.recv_fds(self._socket, protocol.HELLO.size, 256)
            if len(hello) < protocol.HELLO.size:
                raise TargetError(f"The plugin at {path} refused us; run as the guest's owner, or as root.")
            magic, version, vcpus, self._slots = protocol.HELLO.unpack(hello)
            if magic != protocol.MAGIC or version != protocol.PROTOCOL:
                raise TargetError(
                    "The guest has another version of the trap plugin; restart it with this one."
                )
            self._map = mmap.mmap(self._descriptors[0], 0)
        except TimeoutError:
            self._release()
            raise TargetError(
                f"The plugin at {path} serves another reader; end that one first, it serves one at a time."
            ) from None
        except BaseException:
            self._release()
            raise
        self._view = memoryview(self._map)
        self._ring = self._word(protocol.RING_OFFSET_AT)
        self._settled = SettledTable(self._view, protocol.SETTLED_AT)
        self._tail = 0
        self._adaptive = AdaptivePoll(spare=len(os.sched_getaffinity(0)) > vcpus)
        self._poll = select.poll()
        self._poll.register(self._descriptors[1], select.POLLIN)
        self._poll.register(self._socket, select.POLLIN)

    def _word(self, at: int) -> int:
        return int(_U64.unpack_from(self._view, at)[0])

    @property
    def counters(self) -> TrapCounters:
        """See `live.core.traps.TrapSource.counters`."""
        return TrapCounters(
            delivered=self._delivered,
            dropped=self._word(protocol.DROPPED_AT),
            hold_timeouts=self._word(protocol.TIMEOUTS_AT),
            held_ns=self._word(protocol.WAITED_AT),
        )

    def arm(self, request: TrapRequest) -> None:
        """Replace what is trapped.

        In force for every vCPU when this returns, but for code addresses that are new to the plugin, when
        something was trapped before: they need all of QEMU's generated code made anew, which every vCPU has
        to leave for that, and a held one does not.  They are in force soon after it is resumed.

        Raises `MemoryFault` for a word that is not in guest RAM, `TargetError`, `GuestGone`.
        """
        if request.accesses:
            raise TargetError("The trap plugin does not watch data; trap code addresses instead.")
        self._settled.replace(request.settled - request.pending)
        request = replace(request, settled=frozenset())
        if request == self._armed:  # the vCPUs see the rest in the table
            if self._hung_up():
                raise self._gone()
            return
        deadline = time.monotonic() + _ARM_TIMEOUT_S
        status, flush = self._send(request)
        while status == protocol.STATUS_PREPARING:
            self._await_flush(flush, deadline, traps=False)
            status, flush = self._send(request)
        if status == protocol.STATUS_FLUSHING:
            if not self._held:
                self._await_flush(flush, deadline, traps=True)
        elif status == protocol.STATUS_NO_MEMORY:
            raise TargetError(
                "QEMU got no memory for what is to be trapped, so nothing more is; free some on the host, "
                "or use --mode gdbstub."
            )
        elif status:
            raise TargetError(f"The trap plugin refused the request (status {status}); report this.")
        self._armed = request

    def _send(self, request: TrapRequest) -> tuple[int, int]:
        """Status, and the number of the flush that it waits for."""
        try:
            message = protocol.encode_request(request, self._hold_ms, self._hva)
        except ValueError as error:
            raise TargetError(f"The trap plugin cannot do that: {error}; ask for less.") from None
        try:
            self._socket.sendall(message)
            answer = self._socket.recv(protocol.ANSWER.size, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < protocol.ANSWER.size:
            raise self._gone()
        status, flush = protocol.ANSWER.unpack(answer)
        return status, flush

    def _await_flush(self, number: int, deadline: float, *, traps: bool) -> None:
        """Return when the plugin has made that many flushes; with ``traps`` also when one is to be read."""
        nudge_at = time.monotonic() + _NUDGE_S
        while self._word(protocol.FLUSHES_AT) < number:
            if traps and not self._nothing():
                return  # a vCPU is held; the flush follows when it goes on
            if self._hung_up():
                raise self._gone()
            now = time.monotonic()
            if now > deadline:
                raise TargetError(
                    "Traps cannot be armed while the guest's vCPUs do not run; resume the guest."
                )
            if now > nudge_at and self._nudge is not None:
                self._nudge()
                nudge_at = math.inf
            time.sleep(0.0005)

    def _head(self) -> int:
        return self._word(protocol.HEAD_AT)

    def _nothing(self) -> bool:
        return self._head() == self._tail

    def _hung_up(self) -> bool:
        return any(
            number != self._descriptors[1] and flags & (select.POLLHUP | select.POLLERR | select.POLLIN)
            for number, flags in self._poll.poll(0)
        )

    @staticmethod
    def _gone() -> GuestGone:
        return GuestGone("The guest has ended, and its trap plugin with it; start it to watch again.")

    def wait(self, timeout: float | None) -> Trap | None:
        """See `live.core.traps.TrapSource.wait`."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._adaptive.poll(self._nothing, deadline)
        while self._nothing():
            rest = min(_GLANCE_S, deadline - time.monotonic())
            for number, _flags in self._sleep(max(rest, 0) * 1000):
                if number == self._descriptors[1]:
                    with contextlib.suppress(BlockingIOError):
                        os.read(number, 8)
                elif self._nothing():
                    raise self._gone()
            if time.monotonic() >= deadline and self._nothing():
                return None
        at = self._ring + self._tail % self._slots * protocol.EVENT_SIZE
        trap = protocol.decode_event(
            self._view, at, self._machine, split=self._armed.split_asids, words=self._words
        )
        fenced = self._view[at + protocol.ACTION_AT] >= protocol.FENCE
        self._tail += 1
        _U64.pack_into(self._view, protocol.TAIL_AT, self._tail)
        self._delivered += 1
        if trap.held:
            self._held[trap.vcpu] = trap.sequence, fenced
        self._adaptive.trap(trap.time_ns)
        return trap

    def _sleep(self, milliseconds: float) -> list[tuple[int, int]]:
        """What is ready of our descriptors, after a wait; the plugin writes one only while we sleep."""
        _U64.pack_into(self._view, protocol.ASLEEP_AT, 1)
        # The poll between the two keeps the CPU from looking at the head before our word is seen.
        ready = self._poll.poll(0)
        if not ready and self._nothing():
            ready = self._poll.poll(milliseconds)
        _U64.pack_into(self._view, protocol.ASLEEP_AT, 0)
        return ready

    def resume(self, trap: Trap, *, news: bool = True) -> None:
        """See `live.core.traps.TrapSource.resume`."""
        if self._socket.fileno() < 0:
            return  # closed: every vCPU was let go
        _U64.pack_into(self._view, protocol.HANDLED_AT, trap.sequence)
        sequence, fenced = self._held.get(trap.vcpu, (None, False))
        if sequence != trap.sequence:
            return
        del self._held[trap.vcpu]
        at = protocol.RESUMED_AT + protocol.RESUMED_STRIDE * trap.vcpu
        _U64.pack_into(self._view, at, trap.sequence)
        if not fenced:  # whoever waits at a fence looks for the word
            os.eventfd_write(self._descriptors[2 + trap.vcpu], 1)

    def close(self) -> None:
        """Detach: the plugin lets every vCPU go and is idle again.  Safe to call twice."""
        if self._socket.fileno() < 0:
            return
        # The plugin hangs up when it has let go, so that nothing of ours is in force when this returns.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_CONNECT_TIMEOUT_S)
            self._socket.recv(1)
        self._view.release()
        self._map.close()
        self._release()

    def _release(self) -> None:
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.pop())


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_TIMEOUT_S)
    try:
        connection.connect(path)
    except PermissionError:
        connection.close()
        raise NotPermitted(
            f"Permission to use the plugin at {path} is denied; run as the guest's owner, or as root."
        ) from None
    except (TimeoutError, BlockingIOError):
        connection.close()
        raise TargetError(f"The plugin at {path} serves another reader; end that one first.") from None
    except OSError as error:
        connection.close()
        raise NoTarget(
            f"No trap plugin listens at {path} ({error.strerror}); start the guest with "
            f'-plugin "$(pse plugin {path})".'
        ) from error
    return connection
