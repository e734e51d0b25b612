"""The paths under `/-/`, through which another process or the emulator's page observes and controls the emulator.

Every body is JSON. An error is `{"error": TEXT}`: 400 for a body without meaning, 403 for a page of another site
(`control_guard`), 404 for a path or an id that does not exist, 405 with `Allow`, 409 for an event that has started.

| request | answer |
|---|---|
| `GET /-/` | the page for people (`page_document`) |
| `GET /-/healthy` | `{"status": "healthy"}` |
| `GET /-/state?since=N` | `{"now", "next", "arrivals", "faults", "events"}`: all the lists below in one answer. `now` is in the seconds of `at`; `next` is the `since` of the next request; an arrival has its User-Agent as `client` too |
| `GET /-/arrivals?since=N` | `[{"at", "method", "target", "status"}]` from index N on; `at` in seconds, `status` null while it is not answered |
| `GET /-/faults` | `[{"id", "path", "status", …, "left": {"seconds", "times"}}]`: what is in force; null is without end |
| `POST /-/faults` | a fault or a list of faults, with the names of `faults.Fault` (`for` is `seconds`) → `{"faults": COUNT, "ids": […]}` |
| `DELETE /-/faults` | drops all → `{"faults": 0}` |
| `DELETE /-/faults/ID` | drops one → `{"faults": COUNT}` |
| `GET /-/events` | `{"DocumentIncarnation", "Enabled", "Events": […]}`: the newest document, and in each event `Phase` (`Pending`, `Scheduled`, `Started`), `AnnouncedIn`, `StartsIn`, `EndsIn` (seconds, null for never) |
| `POST /-/events` | `{"EventType", "NoticeInSeconds", "DurationInSeconds", "AfterSeconds", "CancelAfterSeconds", "Resources", "Description", "EventSource", "EventId"}`, each optional → `{"EventId"}`. Types: `schedule.KINDS`, also as IMDS writes them |
| `DELETE /-/events` | drops all → `{"Events": []}` |
| `DELETE /-/events/ID` | drops one → the list, as `GET /-/events` |
| `POST /-/events/ID/cancel` | cancels one that has not started → the list |
| `POST /-/events/ID/approve` | starts one, as `StartRequests` does → the list |
| `GET /-/ca.pem`, `GET /-/ca/root.cer`, `GET /-/ca/intermediate.cer`, `GET /-/ca/intermediate.pem` | the certificates of the emulator's authority, as PEM or DER |
| `POST /-/reset` | drops arrivals, faults and events → `{"status": "reset"}` |
"""  # noqa: E501 - a row of a table is one line

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from imdsproxy.emulator.control_guard import refusal
from imdsproxy.emulator.event_kinds import UnknownEventError
from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.messages import Answer, Request, failure, json_answer
from imdsproxy.emulator.page_document import page
from imdsproxy.emulator.publishing import CERTIFICATES, certificate_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from imdsproxy.emulator.emulator import Arrival, Emulator

    Handler = Callable[[Emulator, Request, str], Answer]

_EVENT_KEYS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "EventType": ("event_type", str),
    "EventId": ("event_id", str),
    "Resources": ("resources", list),
    "Description": ("description", str),
    "EventSource": ("source", str),
    "DurationInSeconds": ("duration", (int, float)),
    "NoticeInSeconds": ("notice", (int, float)),
    "AfterSeconds": ("after", (int, float)),
    "CancelAfterSeconds": ("cancel_after", (int, float)),
}

_INDEX = re.compile(r"[0-9]{1,18}")


def is_control(path: str) -> bool:
    """Return whether a raw path belongs to the emulator itself. Such a request is not an arrival at IMDS."""
    return path.startswith("/-/")


def control(emulator: Emulator, request: Request) -> Answer:
    """Return the answer to a control request: 400 with the reason if the body is invalid."""
    refused = refusal(request, emulator.page_token)
    if refused is not None:
        return refused
    methods, name = _find(request.path)
    if not methods:
        return failure(404)
    if request.method not in methods:
        return replace(failure(405), headers=(("allow", ", ".join(methods)),))
    try:
        return methods[request.method](emulator, request, name)
    except UnknownEventError as error:
        return failure(404, message=str(error))
    except (ValueError, TypeError, RecursionError) as error:
        return failure(400, message=str(error))


def _find(path: str) -> tuple[dict[str, Handler], str]:
    """Return the methods of a path, and the id in it."""
    if path in _PATHS:
        return _PATHS[path], ""
    match path.split("/")[2:]:
        case ["faults", name] if name:
            return {"DELETE": _remove_fault}, unquote(name)
        case ["events", name] if name:
            return {"DELETE": _remove_event}, unquote(name)
        case ["events", name, "cancel"] if name:
            return {"POST": _cancel_event}, unquote(name)
        case ["events", name, "approve"] if name:
            return {"POST": _approve_event}, unquote(name)
        case _:
            return {}, ""


def _page(emulator: Emulator, _request: Request, _name: str) -> Answer:
    return page(emulator.page_token)


def _certificate(emulator: Emulator, request: Request, _name: str) -> Answer:
    return certificate_answer(emulator, request.path)


def _healthy(_emulator: Emulator, _request: Request, _name: str) -> Answer:
    return json_answer({"status": "healthy"})


def _state(emulator: Emulator, request: Request, _name: str) -> Answer:
    arrivals = [_listed(arrival) | {"client": arrival.client} for arrival in _arrivals_since(emulator, request)]
    document = {
        "now": emulator.now(),
        "next": emulator.arrived,
        "arrivals": arrivals,
        "faults": emulator.faults.listing(),
        "events": emulator.events.listing(),
    }
    return json_answer(document)


def _arrivals(emulator: Emulator, request: Request, _name: str) -> Answer:
    return json_answer([_listed(arrival) for arrival in _arrivals_since(emulator, request)])


def _arrivals_since(emulator: Emulator, request: Request) -> list[Arrival]:
    since = dict(request.query).get("since", "0")
    if not _INDEX.fullmatch(since):
        raise ValueError(f"since is an index, a whole number from 0 on, not {since!r}")
    return emulator.arrivals_since(int(since))


def _listed(arrival: Arrival) -> dict[str, Any]:
    return {
        "at": arrival.at,
        "method": arrival.method,
        "target": arrival.target.decode("latin-1"),
        "status": arrival.status,
    }


def _faults(emulator: Emulator, _request: Request, _name: str) -> Answer:
    return json_answer(emulator.faults.listing())


def _add_faults(emulator: Emulator, request: Request, _name: str) -> Answer:
    document = _json(request.body)
    faults = [Fault.from_mapping(_object(each)) for each in (document if isinstance(document, list) else [document])]
    ids = emulator.faults.add(*faults)
    return json_answer({"faults": len(emulator.faults), "ids": ids})


def _remove_fault(emulator: Emulator, _request: Request, name: str) -> Answer:
    try:
        emulator.faults.remove(int(name))
    except (ValueError, KeyError):
        return failure(404, message=f"no fault {name!r}")
    return json_answer({"faults": len(emulator.faults)})


def _clear_faults(emulator: Emulator, _request: Request, _name: str) -> Answer:
    emulator.faults.clear()
    return json_answer({"faults": 0})


def _events(emulator: Emulator, _request: Request, _name: str) -> Answer:
    return json_answer(emulator.events.listing())


def _add_event(emulator: Emulator, request: Request, _name: str) -> Answer:
    arguments: dict[str, Any] = {}
    for key, value in _object(_json(request.body)).items():
        if key not in _EVENT_KEYS:
            raise ValueError(f"unknown key {key!r}; known are {', '.join(_EVENT_KEYS)}")
        name, kind = _EVENT_KEYS[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{key} cannot be {value!r}")
        if isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise TypeError(f"{key} cannot be {value!r}; give a list of names")
        arguments[name] = value
    return json_answer({"EventId": emulator.events.add(**arguments)})


def _remove_event(emulator: Emulator, request: Request, name: str) -> Answer:
    emulator.events.remove(name)
    return _events(emulator, request, name)


def _cancel_event(emulator: Emulator, request: Request, name: str) -> Answer:
    try:
        emulator.events.cancel(name)
    except UnknownEventError:
        raise
    except ValueError as error:
        return failure(409, message=str(error))
    return _events(emulator, request, name)


def _approve_event(emulator: Emulator, request: Request, name: str) -> Answer:
    emulator.events.approve(name)
    return _events(emulator, request, name)


def _clear_events(emulator: Emulator, _request: Request, _name: str) -> Answer:
    emulator.events.clear()
    return json_answer({"Events": []})


def _reset(emulator: Emulator, _request: Request, _name: str) -> Answer:
    emulator.reset()
    return json_answer({"status": "reset"})


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("the body must be a JSON object")
    return value


_PATHS: dict[str, dict[str, Handler]] = {
    "/-/": {"GET": _page},
    "/-/healthy": {"GET": _healthy},
    "/-/state": {"GET": _state},
    "/-/arrivals": {"GET": _arrivals},
    "/-/faults": {"GET": _faults, "POST": _add_faults, "DELETE": _clear_faults},
    "/-/events": {"GET": _events, "POST": _add_event, "DELETE": _clear_events},
    "/-/reset": {"POST": _reset},
    **{path: {"GET": _certificate} for path in CERTIFICATES},
}
