"""QEMU's monitor, spoken synchronously: QMP through `qemu.qmp`, or the human monitor (HMP) as it is.

Theory of operation
-------------------
A monitor socket serves one client at a time; QEMU leaves a second one waiting in the backlog without a word.
So the first bytes are waited for with a short time limit and looked at without being taken (MSG_PEEK):
``{"QMP"`` is QMP, ``QEMU`` is HMP, silence means that somebody else has it.

QMP runs in an event loop of its own thread, so that events are noticed when they happen.  HMP has no events:
what they would tell is asked for (``info status``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from live.core.errors import GuestGone, NoTarget, NotPermitted, TargetError

_T = TypeVar("_T")

GREETING_TIMEOUT = 2.0
"""Seconds.  A free monitor greets within milliseconds, unless QEMU's main loop is busy."""
COMMAND_TIMEOUT = 10.0
_PROMPT = b"(qemu) "
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Monitor(Protocol):
    """What the adapter needs of a monitor, whichever language it speaks."""

    @property
    def protocol(self) -> str:
        """``"qmp"`` or ``"hmp"``."""

    @property
    def version(self) -> str:
        """QEMU's version, ``"10.0.2"``."""

    def hmp(self, command: str) -> str:
        """Output of a human monitor command.  Raises `GuestGone` when the monitor closed."""

    def status(self) -> str:
        """``running``, ``paused``, ``shutdown``, ..., as ``info status`` has it."""

    def events(self) -> list[str]:
        """QMP events since the last call (``RESET``, ``SHUTDOWN``, ...); HMP has none."""

    def fileno(self) -> int:
        """Descriptor of the socket, for a process that speaks to QEMU when we no longer can."""

    def close(self) -> None:
        """Leave the monitor to others."""


def _gone(address: str) -> GuestGone:
    return GuestGone(f"The monitor at {address} closed; the guest has probably ended, start it again.")


def connect(address: str, timeout: float = GREETING_TIMEOUT) -> Monitor:
    """Open the monitor at ``address`` (a path or ``HOST:PORT``).

    Raises `NoTarget` (nobody listens, or no QEMU), `NotPermitted`, `TargetError` (somebody else uses it).
    """
    sock = _open(address, timeout)
    try:
        greeting = _first_bytes(sock, address, timeout)
        if greeting.startswith(b"{"):
            return QmpMonitor(sock, address)
        if greeting.startswith(b"QEMU "):
            return HmpMonitor(sock, address)
    except BaseException:
        sock.close()
        raise
    sock.close()
    raise NoTarget(f"What listens at {address} is no QEMU monitor; give the guest's monitor socket.")


def _open(address: str, timeout: float) -> socket.socket:
    host, _, port = address.rpartition(":")
    unix = "/" in address
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect(address if unix else (host, int(port)))
    except PermissionError:
        sock.close()
        raise NotPermitted(
            f"Permission to use the monitor at {address} is denied; run as the guest's owner, or as root."
        ) from None
    except (BlockingIOError, TimeoutError):  # the backlog is full of others that wait
        sock.close()
        raise _busy(address) from None
    except (OSError, ValueError) as error:
        sock.close()
        raise NoTarget(
            f"No QEMU listens at {address} ({error}); check the path, `pse vms` lists the running guests."
        ) from error
    return sock


def _busy(address: str) -> TargetError:
    return TargetError(
        f"The monitor at {address} does not answer: another program uses it (it serves one at a time), or "
        "QEMU hangs; close that program, or start the guest with a second one (-qmp unix:PATH,server,nowait)."
    )


def _first_bytes(sock: socket.socket, address: str, timeout: float) -> bytes:
    sock.settimeout(timeout)
    try:
        data = sock.recv(16, socket.MSG_PEEK)
    except TimeoutError:
        raise _busy(address) from None
    except OSError:
        data = b""
    if not data:
        raise _gone(address)
    return data


class QmpMonitor:
    """A QMP session on a connected socket, driven from its own thread."""

    protocol = "qmp"

    def __init__(self, sock: socket.socket, address: str) -> None:
        """Negotiate.  Owns ``sock`` from here on."""
        self._address, self._descriptor = address, sock.fileno()
        self._names: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pse-qmp", daemon=True)
        self._thread.start()
        sock.setblocking(False)
        try:
            self._client = self._call(self._connect(sock))
        except (QMPError, OSError, EOFError, TargetError) as error:
            self._stop()
            sock.close()
            raise error if isinstance(error, TargetError) else _gone(address) from error
        greeting: Any = self._client.greeting
        parts = greeting.QMP.version["qemu"]
        self.version = f"{parts['major']}.{parts['minor']}.{parts['micro']}"

    async def _connect(self, sock: socket.socket) -> QMPClient:
        client = QMPClient("pse")
        client.logger.disabled = True  # it reports a guest's end as an error; we say it ourselves
        await client.connect(sock)
        self._watcher = asyncio.get_running_loop().create_task(self._watch(client))
        return client

    async def _watch(self, client: QMPClient) -> None:
        with client.listener() as listener:
            async for event in listener:
                self._names.append(str(event["event"]))

    def _call(self, work: Coroutine[Any, Any, _T], timeout: float = COMMAND_TIMEOUT) -> _T:
        if self._loop.is_closed():
            work.close()
            raise TargetError(f"The monitor at {self._address} was closed; attach to the guest again.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            raise TargetError(
                f"The monitor at {self._address} did not answer within {timeout:g} s; QEMU may be stopped, "
                "look at its process."
            ) from None
        finally:
            future.cancel()

    def execute(self, command: str, **arguments: object) -> Any:
        """The ``return`` of a QMP command.  Raises `GuestGone`, and `TargetError` when QEMU refuses."""
        try:
            return self._call(self._client.execute(command, arguments or None))
        except ExecuteError as error:
            raise TargetError(f"QEMU refused {command}: {error}; check its version.") from error
        except (QMPError, OSError, EOFError) as error:
            raise _gone(self._address) from error

    def hmp(self, command: str) -> str:
        """See `Monitor.hmp`."""
        return str(self.execute("human-monitor-command", **{"command-line": command})).replace("\r\n", "\n")

    def status(self) -> str:
        """See `Monitor.status`."""
        return str(self.execute("query-status")["status"])

    def events(self) -> list[str]:
        """See `Monitor.events`."""
        names, self._names = self._names, []
        return names

    def fileno(self) -> int:
        """See `Monitor.fileno`."""
        return self._descriptor

    def close(self) -> None:
        """See `Monitor.close`; safe to call twice."""
        if self._loop.is_closed():
            return

        async def leave() -> None:
            self._watcher.cancel()
            with contextlib.suppress(QMPError, OSError, EOFError):
                await self._client.disconnect()

        with contextlib.suppress(TargetError, QMPError, OSError, EOFError):
            self._call(leave())
        self._stop()

    def _stop(self) -> None:
        async def cancel() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        with contextlib.suppress(TargetError):
            self._call(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(COMMAND_TIMEOUT)
        if not self._thread.is_alive():
            self._loop.close()


class HmpMonitor:
    """The human monitor: a line in, its echo and its output back, until the next prompt."""

    protocol = "hmp"

    def __init__(self, sock: socket.socket, address: str) -> None:
        """Read up to the first prompt.  Owns ``sock`` from here on."""
        self._sock = sock
        self._address = address
        banner = self._until_prompt()
        match = re.search(r"QEMU (\d+(?:\.\d+)+)", banner)
        self.version = match[1] if match else "?"

    def _until_prompt(self) -> str:
        self._sock.settimeout(COMMAND_TIMEOUT)
        data = b""
        while not data.endswith(_PROMPT):
            try:
                chunk = self._sock.recv(65536)
            except TimeoutError:
                raise _busy(self._address) from None
            except OSError:
                chunk = b""
            if not chunk:
                raise _gone(self._address)
            data += chunk
        return data.removesuffix(_PROMPT).decode("utf-8", "replace")

    def hmp(self, command: str) -> str:
        """See `Monitor.hmp`."""
        try:
            self._sock.sendall(command.encode() + b"\n")
        except OSError:
            raise _gone(self._address) from None
        answer = self._until_prompt().replace("\r\n", "\n")
        # readline redraws the line for each character typed; the output starts behind the first newline.
        return _ESCAPES.sub("", answer.partition("\n")[2])

    def status(self) -> str:
        """See `Monitor.status`."""
        text = self.hmp("info status").lower()
        match = re.search(r"vm status: (\w+)(?: \(([\w-]+)\))?", text)
        return (match[2] or match[1]) if match else "unknown"

    def events(self) -> list[str]:
        """See `Monitor.events`."""
        return []

    def fileno(self) -> int:
        """See `Monitor.fileno`."""
        return self._sock.fileno()

    def close(self) -> None:
        """See `Monitor.close`."""
        self._sock.close()


__all__ = ["HmpMonitor", "Monitor", "QmpMonitor", "connect"]
