"""Events and traps as JSON, independent of any output schema, and back.

Every field of the dataclasses of `live.core` is kept, except None and defaults.  Decoding checks every type
and bound, because a file may come from a stranger.  An unknown field (from a newer writer) is ignored; a
missing one (from an older writer) gets its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from live.core.events import (
    Capabilities,
    EndReason,
    Event,
    ExitStatus,
    Identity,
    Namespaces,
    Occasion,
    Process,
    ProcessEnd,
    ProcessExec,
    ProcessStart,
    Security,
    StartReason,
)
from live.core.memory import Asid, GuestPhysical, GuestVirtual
from live.core.traps import Abi, Access, AsidChange, CodeHit, Syscall, Trap, VcpuIndex

Json = dict[str, Any]
Parser = Callable[[Any], Any]

MAX_TIME = 1 << 62
"""Upper bound of a time, in ns since the epoch: the year 2116."""


def _integer(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
        raise ValueError("a number is none, or too large")
    return int(value)


def _time(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_TIME:
        raise ValueError("a time is none, or beyond the year 2116")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is none")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a truth value is none")
    return value


def _identity(value: Any) -> Identity:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("an identity is none")
    return Identity(_integer(value[0]), _integer(value[1]))


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list is none")
    return tuple(_text(one) for one in value)


def _record(kind: Callable[..., Any], parsers: Mapping[str, Parser]) -> Parser:
    def parse(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("an object is none")
        known = {name: parsers[name](one) for name, one in value.items() if name in parsers}
        try:
            return kind(**known)
        except TypeError as error:  # a field without a default is missing
            raise ValueError(str(error)) from None

    return parse


def _number_or_none(value: Any) -> int | None:
    return None if value is None else _integer(value)


_status = _record(ExitStatus, {"code": _number_or_none, "signal": _number_or_none, "core": _truth})
_namespaces = _record(Namespaces, {field.name: _number_or_none for field in fields(Namespaces)})
_capabilities = _record(Capabilities, dict.fromkeys(Capabilities._fields, _integer))


def _device(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("a device is none")
    return _integer(value[0]), _integer(value[1])


_SECURITY: dict[str, Parser] = {
    **{field.name: _number_or_none for field in fields(Security)},
    "capabilities": lambda value: None if value is None else _capabilities(value),
    "no_new_privs": lambda value: None if value is None else _truth(value),
    "tty": _device,
}
_security = _record(Security, _SECURITY)
_occasion = _record(
    Occasion,
    {
        "time_ns": _time,
        "trigger": _text,
        "late_ns": _integer,
        "missed": _integer,
        "boottime": _number_or_none,
    },
)
_PROCESS: dict[str, Parser] = {
    **{field.name: _integer for field in fields(Process)},
    "identity": _identity,
    "parent": _identity,
    "comm": _text,
    "kernel": _truth,
    "task": lambda value: GuestVirtual(_integer(value)),
    "asid": lambda value: None if value is None else Asid(_integer(value)),
    "exe": _text,
    "args": _texts,
    "args_truncated": _truth,
    "cwd": _text,
    "namespaces": _namespaces,
    "cgroup": _text,
    "container_id": _text,
    "security": _security,
    "exited": _status,
}
_process = _record(Process, _PROCESS)
_DEFAULTS = {field.name: field.default for field in fields(Process)}


def _encode_process(process: Process) -> Json:
    result: Json = {}
    for name, default in _DEFAULTS.items():
        value = getattr(process, name)
        if value is None and name != "asid":
            continue
        if value == default:
            continue
        if name == "namespaces":
            value = {one.name: getattr(value, one.name) for one in fields(Namespaces)}
        elif name == "security":
            value = _encode_security(value)
        elif name == "exited":
            value = _encode_status(value)
        result[name] = value
    return result


def _encode_security(security: Security) -> Json:
    values = {one.name: getattr(security, one.name) for one in fields(Security)}
    if security.capabilities is not None:
        values["capabilities"] = security.capabilities._asdict()
    if security.tty is not None:
        values["tty"] = list(security.tty)
    return {name: value for name, value in values.items() if value is not None}


def _encode_status(status: ExitStatus) -> Json:
    return {"code": status.code, "signal": status.signal, "core": status.core}


def _encode_occasion(occasion: Occasion) -> Json:
    result: Json = {
        "time_ns": occasion.time_ns,
        "trigger": occasion.trigger,
        "late_ns": occasion.late_ns,
        "missed": occasion.missed,
    }
    return result if occasion.boottime is None else {**result, "boottime": occasion.boottime}


def encode_event(event: Event) -> Json:
    """An event as nested JSON values; None and defaults of a process are left out."""
    result: Json = {"occasion": _encode_occasion(event.occasion)}
    if isinstance(event, ProcessExec):
        return {
            "event": "exec",
            "old": _encode_process(event.old),
            "new": _encode_process(event.new),
            **result,
        }
    result["process"] = _encode_process(event.process)
    result["reason"] = event.reason.value
    if isinstance(event, ProcessStart):
        return {"event": "start", **result}
    if event.status is not None:
        result["status"] = _encode_status(event.status)
    return {"event": "end", **result}


def decode_event(value: Any) -> Event:
    """The inverse of `encode_event`.  Raises `ValueError`."""
    if not isinstance(value, dict):
        raise ValueError("an event is no object")
    kind, occasion = value.get("event"), _occasion(value.get("occasion"))
    if kind == "exec":
        return ProcessExec(old=_process(value.get("old")), new=_process(value.get("new")), occasion=occasion)
    process = _process(value.get("process"))
    if kind == "start":
        return ProcessStart(process=process, reason=StartReason(value.get("reason")), occasion=occasion)
    if kind != "end":
        raise ValueError("an event is of no known kind")
    status = value.get("status")
    return ProcessEnd(
        process=process,
        reason=EndReason(value.get("reason")),
        status=None if status is None else _status(status),
        occasion=occasion,
    )


_TRAPS: Mapping[str, type[Trap]] = {
    "asid": AsidChange,
    "syscall": Syscall,
    "code": CodeHit,
    "access": Access,
}
_KINDS = {kind: name for name, kind in _TRAPS.items()}


def encode_trap(trap: Trap) -> Json:
    """A trap as JSON values, all fields included."""
    result: Json = {"trap": _KINDS[type(trap)]}
    for one in fields(trap):
        value = getattr(trap, one.name)
        result[one.name] = dict(value) if isinstance(value, Mapping) else value
    return result


def _registers(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > 256:
        raise ValueError("registers are none")
    return {name: _integer(number) for name, number in value.items()}


def _gpas(value: Any) -> tuple[GuestPhysical, ...]:
    if not isinstance(value, list) or len(value) > 256:
        raise ValueError("words are none")
    return tuple(GuestPhysical(_integer(one)) for one in value)


_COMMON: dict[str, Parser] = {
    "vcpu": lambda value: VcpuIndex(_integer(value)),
    "asid": lambda value: Asid(_integer(value)),
    "pc": lambda value: GuestVirtual(_integer(value)),
    "sequence": _integer,
    "time_ns": _integer,
    "held": _truth,
    "registers": _registers,
}
_OF_KIND: Mapping[str, Parser] = {
    "asid": _record(
        AsidChange,
        {
            **_COMMON,
            "new_asid": lambda value: Asid(_integer(value)),
            "moved": _truth,
            "words": _gpas,
        },
    ),
    "syscall": _record(Syscall, {**_COMMON, "number": _integer, "abi": lambda value: Abi(_integer(value))}),
    "code": _record(CodeHit, _COMMON),
    "access": _record(Access, {**_COMMON, "address": lambda value: GuestVirtual(_integer(value))}),
}


def decode_trap(value: Any) -> Trap:
    """The inverse of `encode_trap`.  Raises `ValueError`."""
    kind = value.get("trap") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _OF_KIND:
        raise ValueError("a trap is of no known kind")
    trap: Trap = _OF_KIND[kind](value)
    return trap


def dumps(value: Json) -> bytes:
    """Compact ASCII JSON; lone surrogates (undecodable bytes from the guest) are kept as escapes."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def loads(raw: bytes) -> Any:
    """The inverse of `dumps`.  Raises `ValueError`, also for JSON that is nested too deeply."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
