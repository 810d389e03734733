"""QEMU's monitor, synchronously, for tests: qemu.qmp with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, QMPClient

from .errors import GuestError


class Monitor:
    """One monitor connection, over a socket that is already connected. Safe to use from several threads."""

    def __init__(self, connected: socket.socket) -> None:
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("lab")
        # What goes wrong reaches the caller as an error; nobody needs it in a log as well.
        self._client.logger.setLevel(logging.CRITICAL)
        # Events that nobody reads would pile up.
        self._client.events.names = {"RESET", "SHUTDOWN", "GUEST_PANICKED"}
        self._run(self._client.connect(connected), "capabilities negotiation", 60)

    def execute(self, command: str, arguments: dict[str, Any] | None = None, timeout: float = 120) -> Any:
        """Execute a QMP command and return what it returns."""
        return self._run(self._client.execute(command, arguments), command, timeout)

    def _run(self, awaitable: Any, what: str, timeout: float) -> Any:
        with self._lock:
            try:
                return self._loop.run_until_complete(asyncio.wait_for(awaitable, timeout))
            except asyncio.TimeoutError:
                raise GuestError(f"QEMU's monitor did not answer {what!r} within {timeout:g} s") from None
            except (EOFError, ConnectError, ExecInterruptedError) as error:
                raise GuestError(f"QEMU ended during {what!r} on its monitor") from error

    def close(self) -> None:
        with self._lock:
            if self._loop.is_closed():
                return
            # QEMU may have gone in any way; nothing is left to close then.
            with contextlib.suppress(Exception):
                self._loop.run_until_complete(self._client.disconnect())
            self._loop.close()
