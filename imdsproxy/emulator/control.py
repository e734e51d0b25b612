"""The paths under `/-/`, through which another process observes and controls the emulator."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.messages import Answer, Request, failure, json_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from imdsproxy.emulator.emulator import Emulator

_EVENT_KEYS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "EventType": ("event_type", str),
    "EventId": ("event_id", str),
    "Resources": ("resources", list),
    "Description": ("description", str),
    "EventSource": ("source", str),
    "DurationInSeconds": ("duration", int),
    "NoticeInSeconds": ("notice", (int, float)),
}


def is_control(path: str) -> bool:
    """Return whether a raw path belongs to the emulator itself. Such a request is not an arrival at IMDS."""
    return path.startswith("/-/")


def control(emulator: Emulator, request: Request) -> Answer:
    """Return the answer to a control request: 400 with the reason if the body is invalid."""
    methods = _PATHS.get(request.path)
    if methods is None:
        return failure(404)
    if request.method not in methods:
        return replace(failure(405), headers=(("allow", ", ".join(methods)),))
    try:
        return methods[request.method](emulator, request)
    except (ValueError, TypeError, RecursionError) as error:
        return failure(400, message=str(error))


def _healthy(_emulator: Emulator, _request: Request) -> Answer:
    return json_answer({"status": "healthy"})


def _arrivals(emulator: Emulator, request: Request) -> Answer:
    since = int(dict(request.query).get("since", "0"))
    return json_answer(
        [
            {
                "at": arrival.at,
                "method": arrival.method,
                "target": arrival.target.decode("latin-1"),
                "status": arrival.status,
            }
            for arrival in emulator.arrivals_since(since)
        ],
    )


def _add_faults(emulator: Emulator, request: Request) -> Answer:
    document = json.loads(request.body)
    faults = [Fault.from_mapping(_object(each)) for each in (document if isinstance(document, list) else [document])]
    emulator.faults.add(*faults)
    return json_answer({"faults": len(emulator.faults)})


def _clear_faults(emulator: Emulator, _request: Request) -> Answer:
    emulator.faults.clear()
    return json_answer({"faults": 0})


def _add_event(emulator: Emulator, request: Request) -> Answer:
    arguments: dict[str, Any] = {}
    for key, value in _object(json.loads(request.body)).items():
        if key not in _EVENT_KEYS:
            raise ValueError(f"unknown key {key!r}; known are {', '.join(_EVENT_KEYS)}")
        name, kind = _EVENT_KEYS[key]
        if not isinstance(value, kind):
            raise TypeError(f"{key} cannot be {value!r}")
        arguments[name] = value
    return json_answer({"EventId": emulator.events.add(**arguments)})


def _clear_events(emulator: Emulator, _request: Request) -> Answer:
    emulator.events.clear()
    return json_answer({"Events": []})


def _reset(emulator: Emulator, _request: Request) -> Answer:
    emulator.reset()
    return json_answer({"status": "reset"})


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("the body must be a JSON object")
    return value


_PATHS: dict[str, dict[str, Callable[[Emulator, Request], Answer]]] = {
    "/-/healthy": {"GET": _healthy},
    "/-/arrivals": {"GET": _arrivals},
    "/-/faults": {"POST": _add_faults, "DELETE": _clear_faults},
    "/-/events": {"POST": _add_event, "DELETE": _clear_events},
    "/-/reset": {"POST": _reset},
}
