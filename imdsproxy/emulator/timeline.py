"""Events as people write them: durations such as `1h30m`, and timeline files in TOML or JSON.

A timeline is a list of events under the name `event`, each with the keys of `KEYS`:

    [[event]]
    at = "10s"          # after the start of the emulator
    type = "reboot"
    notice = "15m"
    duration = "9s"
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from imdsproxy.emulator.event_kinds import EventError, kind_of

KEYS = {
    "at": "after",
    "type": "event_type",
    "notice": "notice",
    "duration": "duration",
    "cancel": "cancel_after",
    "resources": "resources",
    "description": "description",
    "source": "source",
    "id": "event_id",
}
"""What the keys of an event mean to `ScheduledEvents.add`."""
_DURATIONS = {"at", "notice", "duration", "cancel"}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
# `[[event]]`, and `[event]` in its place by mistake, begin a table of TOML.
_JSON = re.compile(r"\s*(\{|\[(?!\[|\s*[A-Za-z_]\w*\s*\]))")


def read_duration(value: object) -> float:
    """Return the seconds of `90`, `"90"`, `"9s"` or `"1h30m"`.

    Raises:
        EventError: The value is not a duration.
    """
    if isinstance(value, str):
        text = value.strip()
        if _WHOLE.fullmatch(text):
            return math.fsum(float(figure) * _UNITS[unit] for figure, unit in _PART.findall(text))
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise EventError(f"{value!r} is not a duration; write seconds, or 9s, 15m, 1h30m")


def read_event(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `ScheduledEvents.add` for one event of a timeline.

    Raises:
        EventError: A key is unknown, or its value has no meaning; the message names the key.
    """
    if "type" not in mapping:
        raise EventError("the event has no type")
    arguments: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in KEYS:
            raise EventError(f"unknown key {key!r}; known are {', '.join(KEYS)}")
        arguments[KEYS[key]] = _read(key, value)
    kind_of(arguments["event_type"])
    return arguments


def _read(key: str, value: Any) -> Any:
    if key in _DURATIONS:
        if key == "duration" and value == -1:
            return -1
        try:
            return read_duration(value)
        except EventError as error:
            raise EventError(f"{key}: {error}") from None
    if key == "resources":
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise EventError(f"resources must be a list of names, not {value!r}")
        return value
    if not isinstance(value, str):
        raise EventError(f"{key} must be text, not {value!r}")
    return value


def read_timeline(text: str) -> list[dict[str, Any]]:
    """Return the arguments of `ScheduledEvents.add` for each event of a timeline file.

    Raises:
        EventError: The text is neither TOML nor JSON, or an event has no meaning; the message says which one.
    """
    document = _parse(text)
    listed = document.get("event") if isinstance(document, dict) else document
    unknown = sorted(document.keys() - {"event"}) if isinstance(document, dict) else []
    if unknown or not isinstance(listed, list):
        found = f"; it has {', '.join(unknown)}" if unknown else ""
        raise EventError(f"a timeline is a list of events named event ([[event]] in TOML){found}")
    events = []
    for number, each in enumerate(listed, 1):
        if not isinstance(each, dict):
            raise EventError(f"event {number}: must be a table of keys, not {each!r}")
        try:
            events.append(read_event(each))
        except EventError as error:
            raise EventError(f"event {number}: {error}") from None
    return events


def _parse(text: str) -> Any:
    if _JSON.match(text):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EventError(f"not JSON: {error}") from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise EventError(f"not TOML: {error}") from None
