"""Reading the values of the command's flags. Each raises ArgumentTypeError with the value and the remedy."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imdsproxy.emulator.event_kinds import EventError
from imdsproxy.emulator.events import ScheduledEvents
from imdsproxy.emulator.faults import Fault
from imdsproxy.emulator.timeline import read_timeline

LAST_PORT = 65_535


def port(text: str) -> int:
    """Read a port, 0 for a free one."""
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to {LAST_PORT}")
    return int(text)


def count(text: str) -> int:
    """Read a number of requests a second, 0 for no limit."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate; give a whole number, 0 for no limit")
    return int(text)


def seconds(text: str) -> float:
    """Read a duration in seconds, 0 or more."""
    try:
        duration = float(text)
    except ValueError:
        duration = math.nan
    if not 0 <= duration < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; give seconds, 0 or more, e.g. 0.2")
    return duration


def url(text: str) -> str:
    """Read an address without a path, and return it without a trailing slash."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://127.0.0.1:8255")
    return f"{parts.scheme}://{parts.netloc}"


def speed(text: str) -> float:
    """Read how much faster than the clock time passes."""
    factor = seconds(text)
    if not factor:
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed; give a number above 0, e.g. 60")
    return factor


def timeline(path: str) -> list[dict[str, Any]]:
    """Read a timeline file, and return the arguments of `ScheduledEvents.add` for each event."""
    try:
        # PowerShell and Notepad put a byte order mark in front of UTF-8.
        events = read_timeline(Path(path).read_text(encoding="utf-8-sig"))
        plan = ScheduledEvents()  # refuses here what the emulator would refuse after the start
        for number, event in enumerate(events, 1):
            _try(plan, event, number)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path!r}: {error.strerror or error}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{path!r}: {error}") from None
    return events


def _try(plan: ScheduledEvents, event: dict[str, Any], number: int) -> None:
    """Add an event. Raise EventError with its number if it cannot be added."""
    try:
        plan.add(**event)
    except EventError as error:
        raise EventError(f"event {number}: {error}") from None


def fault(text: str) -> Fault:
    """Read a fault such as `status=410,for=20` or `hang,times=1`."""
    mapping: dict[str, str | bool] = {}
    try:
        for item in text.split(","):
            key, equals, value = item.strip().partition("=")
            if key in mapping:
                raise ValueError(f"{key} is given twice")  # noqa: TRY301 - reported like every other mistake
            mapping[key] = value if equals else True
        return Fault.from_mapping(mapping)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; e.g. status=410,for=20") from None
