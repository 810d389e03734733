"""Events as Elastic Common Schema documents, one nested object per event.

Field names are those of ECS 8 (`process.*`, `event.*`, `host.*`; RFC 0030 for the Linux event
model).  What ECS has no field for is under ``pse``.  Values that could not be read are left out.  Bytes from
the guest that are no UTF-8 are escaped by `live.core.text.escaped`.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

from live.core.events import Event, Identity, Process, ProcessEnd, ProcessExec, ProcessStart, StartReason
from live.core.system import System
from live.core.text import escaped
from live.output import capabilities
from live.output.columns import command_line, died, guest_ns, lifetime_ns, process_of, reason, signal_name
from live.output.contract import Context, Sink

_ACTIONS = {StartReason.RUNNING: "running", StartReason.FORK: "fork", StartReason.EXEC: "exec"}


def entity_id(system: System, identity: Identity) -> str:
    """`process.entity_id`: the same for every observer of one boot.

    RFC 0030 names what it is made of (boot id, pid, start time): here the first 16 bytes of their
    SHA-256, in URL-safe base64 without padding.  For the boot id stands `System.key`, since a guest makes
    its boot id only when somebody first asks for it.
    """
    return _hashed(system.key or system.boot_id, identity)


@functools.lru_cache(4096)
def _hashed(boot_id: str, identity: Identity) -> str:
    seed = f"{boot_id}|{identity.pid}|{identity.start}"
    return base64.urlsafe_b64encode(hashlib.sha256(seed.encode()).digest()[:16]).decode().rstrip("=")


def document(event: Event, system: System, *, host: str, mode: str) -> dict[str, Any]:
    """The event as nested dicts of JSON values; ``host``: the VM's name, ``mode``: how it is watched."""
    if isinstance(event, ProcessStart):
        action = _ACTIONS[event.reason]
    else:
        action = "end" if isinstance(event, ProcessEnd) else "exec"
    process, occasion = process_of(event), event.occasion
    result: dict[str, Any] = _clean(
        {
            "@timestamp": _time(occasion.time_ns),
            "event": {
                "kind": "event",
                "category": ["process"],
                "type": [_type(event)],
                "action": action,
                "duration": lifetime_ns(event),
            },
            "host": {
                "name": host,
                "hostname": system.hostname,
                "boot": {"id": system.boot_id} if system.boot_id_known else None,
            },
            "process": _process(event, process, system),
            "user": {"id": _string(process.euid)},
            "group": {"id": _string(process.egid)},
            "container": {"id": process.container_id},
            "pse": {
                "event": event.__class__.__name__,
                "mode": mode,
                "trigger": occasion.trigger,
                "reason": reason(event),
                "late_ms": round(occasion.late_ns / 1e6, 3),
                "missed": occasion.missed,
                "asid": f"{process.asid:#x}" if process.asid is not None else None,
                "task": f"{process.task:#x}",
                "start_boottime": process.identity.start,
                "boottime": occasion.boottime,
                "generation": process.generation,
                "kernel_thread": process.kernel or None,
                "args_truncated": process.args_truncated or None,
                "ns_pid": process.ns_pid,
                "cgroup": process.cgroup,
                "namespaces": {name: getattr(process.namespaces, name) for name in _NAMESPACES}
                if process.namespaces
                else None,
                **_security(process),
                **_ended(event),
            },
        }
    )
    return result


_encode = json.JSONEncoder(separators=(",", ":")).encode
_MASKS = ("effective", "permitted", "inheritable", "bounding", "ambient")
_NAMESPACES = ("pid", "mnt", "net", "uts", "ipc", "cgroup", "user")


def line(event: Event, system: System, *, host: str, mode: str) -> str:
    """The document as one line of ASCII JSON, without the newline."""
    found = document(event, system, host=host, mode=mode)
    text = _encode(found)
    # What `escaped` changes is rare, so it is searched for in the text: surrogates, and a backslash before x.
    return _encode(_escaped(found)) if "\\ud" in text or "\\\\x" in text else text


class EcsLines:
    """A `Sink` of one document per line, flushed, and nothing else."""

    def __init__(self, context: Context) -> None:
        """Nothing is written before the first event."""
        self._context = context

    def show(self, event: Event) -> None:
        """Write one line."""
        context = self._context
        context.out.write(line(event, context.system, host=context.host, mode=context.mode) + "\n")
        context.out.flush()

    def pause(self, summary: Callable[[], str]) -> None:
        """Nothing is deferred."""

    def close(self) -> None:
        """Nothing to do: every line is flushed."""


def lines(context: Context) -> Sink:
    """Elastic Common Schema documents, one per line."""
    return EcsLines(context)


def _process(event: Event, process: Process, system: System) -> dict[str, Any]:
    parent = process.parent
    return {
        "pid": process.pid,
        "name": process.comm,
        "executable": process.exe,
        "args": list(process.args) if process.args is not None else None,
        "args_count": len(process.args) if process.args is not None else None,
        "command_line": command_line(process),
        "working_directory": process.cwd,
        "entity_id": entity_id(system, process.identity),
        "start": _time(process.start_ns),
        "end": _time(guest_ns(event)) if died(event) else None,
        "exit_code": _exit_code(event),
        "real_user": {"id": _string(process.uid)},
        "real_group": {"id": _string(process.gid)},
        "group_leader": {"pid": process.pgid},
        "session_leader": {"pid": process.sid},
        "parent": {"pid": process.ppid, "entity_id": entity_id(system, parent) if parent else None},
        "tty": _tty(process),
        "thread": {"capabilities": _capabilities(process)},
        "previous": _previous(event.old) if isinstance(event, ProcessExec) else None,
    }


def _tty(process: Process) -> dict[str, Any] | None:
    if process.security is None or process.security.tty is None:
        return None
    major, minor = process.security.tty
    return {"char_device": {"major": major, "minor": minor}}


def _capabilities(process: Process) -> dict[str, Any] | None:
    found = process.security.capabilities if process.security is not None else None
    if found is None:
        return None
    return {"effective": _names(found.effective), "permitted": _names(found.permitted)}


@functools.lru_cache(256)
def _names(mask: int) -> list[str] | None:
    """None for none, and for all: most processes have the one or the other, and the masks are there."""
    return None if capabilities.is_all(mask) else capabilities.names(mask) or None


def _security(process: Process) -> dict[str, Any]:
    """What ECS has no field for."""
    found = process.security
    if found is None:
        return {}
    more = found.capabilities
    return {
        "no_new_privs": found.no_new_privs,
        "seccomp": found.seccomp,
        "login_uid": found.login_uid,
        "login_session": found.session_id,
        "in_user_namespace": {
            "uid": found.ns_uid,
            "gid": found.ns_gid,
            "euid": found.ns_euid,
            "egid": found.ns_egid,
        },
        "capabilities": {name: f"{getattr(more, name):#x}" for name in _MASKS} if more is not None else None,
    }


def _previous(process: Process) -> list[dict[str, Any]]:
    return [{"executable": process.exe, "args": list(process.args) if process.args is not None else None}]


def _type(event: Event) -> str:
    """ECS event.type.  The end of an image at exec is a change: the process and its entity_id live on."""
    if isinstance(event, ProcessStart):
        return "info" if event.reason is StartReason.RUNNING else "start"
    return "end" if died(event) else "change"


def _exit_code(event: Event) -> int | None:
    """As a shell reports it: 128 + signal for a process that a signal killed."""
    status = event.status if isinstance(event, ProcessEnd) else None
    if status is None:
        return None
    return 128 + status.signal if status.signal is not None else status.code


def _ended(event: Event) -> dict[str, Any]:
    status = event.status if isinstance(event, ProcessEnd) else None
    if status is None or status.signal is None:
        return {}
    return {"signal": {"number": status.signal, "name": signal_name(status.signal)}, "core": status.core}


@functools.lru_cache(4096)
def _time(time_ns: int | None) -> str | None:
    """ISO 8601, UTC, with microseconds; None beyond year 9999."""
    if time_ns is None:
        return None
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=time_ns // 1000)
    except OverflowError:  # the guest's clock may have any value
        return None
    return moment.isoformat(timespec="microseconds") + "Z"


def _string(number: int | None) -> str | None:
    return None if number is None else str(number)


def _clean(value: dict[str, Any]) -> dict[str, Any]:
    """A copy without None and without objects that are empty then."""
    cleaned = {}
    for key, item in value.items():
        if item.__class__ is dict:
            if inner := _clean(item):
                cleaned[key] = inner
        elif item is not None:
            cleaned[key] = item
    return cleaned


def _escaped(value: Any) -> Any:
    """A copy with text that every JSON reader accepts, and from which the bytes can be had again."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escaped(value) if isinstance(value, str) else value
