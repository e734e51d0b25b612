"""Read single setting values: from text, or a value of a TOML file, to one checked value.

Each reader raises ValueError. Its text is the detail after "must be …", or empty if the general rule is enough.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from imdsproxy.errors import printable
from imdsproxy.protocol.client_ranges import read_range

LONGEST_SECONDS = 31_536_000
"""A year. A longer time is a mistake, and an event loop's timers do not accept every float."""

_SHOWN_CHARACTERS = 80
# `user:password@` of a URL; the password ends in every message as ***.
_PASSWORD = re.compile(r"(//[^/@:]*:)[^/@]*(@)")
_LONGEST_PASSWORD = 1000

_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[a-z0-9._~!$&'()*+,;=:@-]+)+")
_PATTERN = re.compile(r"[*\[\]{}]")
_TARGET = re.compile(r"/metadata/[!\"$-\[\]-~]*", re.IGNORECASE)


def shown(value: object, longest: int = _SHOWN_CHARACTERS) -> str:
    """Return the value as at most `longest` printable characters, on one line, without the password of a URL."""
    text = value if isinstance(value, str) else str(value)
    text = _PASSWORD.sub(r"\1***\2", text[: longest + _LONGEST_PASSWORD])
    if not text.isprintable():
        text = printable(text[:longest]) + ("..." if len(text) > longest else "")
    return text if len(text) <= longest else text[: longest - 3] + "..."


def hint(value: object) -> str:
    """Return what is probably wrong with a refused value, or an empty text."""
    text = value if isinstance(value, str) else ""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return (
            "the quotes are part of the value; write it without them "
            "(systemd and shells remove quotes, docker --env-file does not)"
        )
    if text.lower() == "warn":
        return "write warning"
    return ""


def read_prefixes(value: object) -> tuple[str, ...]:
    """Read path prefixes; lower-cased, without a trailing slash, in the order given."""
    prefixes = tuple(dict.fromkeys(_prefix(item) for item in items_of(value)))
    for prefix in prefixes:
        if not f"{prefix}/".startswith("/metadata/"):
            raise ValueError(f'"{shown(prefix)}" is not under /metadata, and nothing else is forwarded')
    return prefixes


def read_ranges(value: object) -> tuple[str, ...]:
    """Read address ranges, in the order given."""
    ranges = []
    for item in items_of(value):
        try:
            ranges.append(read_range(item))
        except ValueError as error:
            raise ValueError(f'"{shown(item)}" {error}') from None
    return tuple(dict.fromkeys(ranges))


def read_path_seconds(value: object) -> tuple[tuple[str, float], ...]:
    """Read a map from path prefixes under /metadata to seconds; pairs sorted by path."""
    pairs: dict[str, float] = {}
    for path, number in _pairs(value):
        prefix = _prefix(path)
        if prefix != "/metadata" and not prefix.startswith("/metadata/"):
            raise ValueError(f'"{shown(path)}" is not under /metadata')
        if prefix in pairs:
            raise ValueError(f'"{prefix}" occurs twice')
        pairs[prefix] = _seconds(number)
    return tuple(sorted(pairs.items()))


def read_statuses(value: object) -> frozenset[int]:
    """Read HTTP statuses from 400 to 599."""
    items = items_of(value)
    for item in items:
        if not re.fullmatch(r"[45][0-9]{2}", item):
            raise ValueError(f'"{shown(item)}" is not one')
    return frozenset(map(int, items))


def read_targets(value: object) -> tuple[str, ...]:
    """Read request targets to fetch at start; scheduled events are refused, however they are written."""
    targets = tuple(dict.fromkeys(items_of(value)))
    for target in targets:
        if _TARGET.fullmatch(target) is None:
            raise ValueError(f'"{shown(target)}" is not one')
        segments = unquote(target.partition("?")[0]).lower().replace("\\", "/").split("/")
        if any(segment.startswith("scheduledevents") for segment in segments):
            raise ValueError(
                f'"{shown(target)}" is refused, because fetching scheduled events enables the feature'
                " and makes user-initiated restarts wait"
            )
    return targets


def _prefix(text: str) -> str:
    prefix = text.lower().removesuffix("/")
    if _PATTERN.search(prefix):
        raise ValueError(f'"{shown(text)}" is a pattern; write a prefix, which includes everything below it')
    if ";" in prefix:
        raise ValueError(f'"{shown(text)}" has a semicolon; separate by commas')
    if _PREFIX.fullmatch(prefix) is None:
        raise ValueError(f'"{shown(text)}" is not one')
    return prefix


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise ValueError(f'"{shown(text)}" is not a number of seconds from 0 to {LONGEST_SECONDS}')
    return seconds


def items_of(value: object) -> list[str]:
    """Return the items of a list that is written with commas or as JSON. Raises ValueError."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = _json(value)
        else:
            return [item for part in value.split(",") if (item := part.strip())]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError  # noqa: TRY004 - pydantic reports a ValueError as a mistake, but passes a TypeError on
    return [text_of(item) for item in value]


def _pairs(value: object) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        if not value.lstrip().startswith("{"):
            for item in items_of(value):
                # A path may hold "=", a number cannot.
                path, equals, number = item.rpartition("=")
                if not equals:
                    raise ValueError(f'"{shown(item)}" has no "="')
                yield path.strip(), number.strip()
            return
        value = _json(value)
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, Iterable):
        raise ValueError  # noqa: TRY004 - as above
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f'"{shown(pair)}" is not a path and its seconds')
        yield text_of(pair[0]), text_of(pair[1])


def _json(text: str) -> object:
    try:
        # Objects are read as pairs, so that a name given twice is noticed.
        return json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ValueError("it begins like JSON, but is not valid JSON") from error


def text_of(value: object) -> str:
    """Return the text of a scalar. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'"{shown(value)}" is not one')  # noqa: TRY004 - as above
    return str(value).strip()
