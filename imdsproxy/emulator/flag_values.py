"""Reading the values of the command's flags. Each raises ArgumentTypeError with the value and the remedy."""

from __future__ import annotations

import argparse
import math

from imdsproxy.emulator.faults import Fault

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
