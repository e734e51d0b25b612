"""Readers of single setting values: text, or what a TOML file holds, in; one checked value out.

Each reader raises ValueError. Its text is the detail after "must be …", and is empty where the general
rule says enough.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

LONGEST_SECONDS = 31_536_000
"""A year. Anything longer is a slip of the pen, and an event loop's timers cannot carry just any float."""

# Names of their own, so that the rules for other systems can be tested everywhere.
_WINDOWS = sys.platform == "win32"
_LINUX = sys.platform == "linux"
_SHOWN_CHARACTERS = 80
_LONGEST_SOCKET_PATH = 107  # bytes: what sockaddr_un holds on Linux, less the closing zero

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# Resolvers read "127.1" and "0x7f000001" as addresses, so a name must not end in a number.
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY = re.compile(r"(?:\[(?P<six>[^\]]*:[^\]%]*)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[a-z0-9._~!$&'()*+,;=:@-]+)+")
_TARGET = re.compile(r"/metadata/[!\"$-\[\]-~]*", re.IGNORECASE)


class SettingsError(Exception):
    """A setting that cannot be used; the text is one line that names it and says what would do."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where requests go: a host (without brackets) and a port, or the path of a Unix socket."""

    host: str | None
    port: int | None
    path: str | None


def shown(value: object) -> str:
    """Return the value as at most 80 printable characters, on one line."""
    text = value if isinstance(value, str) else str(value)
    if not text.isprintable():
        text = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in text[:_SHOWN_CHARACTERS]
        ) + ("..." if len(text) > _SHOWN_CHARACTERS else "")
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def read_host(value: object) -> str:
    """Read an address or host name to listen on; an IPv6 address may stand in brackets."""
    text = _text(value).lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if _address(text) is None and not _is_host_name(text):
        raise ValueError
    return text


def read_host_names(value: object) -> tuple[str, ...]:
    """Read host names; addresses are refused, because they need no listing."""
    names = tuple(item.lower() for item in _items(value))
    for name in names:
        if _address(name.strip("[]")) is not None:
            raise ValueError(f'"{shown(name)}" is an IP address, and those are always accepted')
        if not _is_host_name(name):
            raise ValueError(f'"{shown(name)}" is not one')
    return tuple(dict.fromkeys(names))


def read_prefixes(value: object) -> tuple[str, ...]:
    """Read path prefixes; lower-cased, without a trailing slash, in the order given."""
    return tuple(dict.fromkeys(_prefix(item) for item in _items(value)))


def read_path_seconds(value: object) -> tuple[tuple[str, float], ...]:
    """Read a map from path prefixes under /metadata to seconds; pairs sorted by path."""
    pairs: dict[str, float] = {}
    for path, number in _pairs(value):
        prefix = _prefix(path)
        if prefix != "/metadata" and not prefix.startswith("/metadata/"):
            raise ValueError(f'"{shown(path)}" is not under /metadata')
        if prefix in pairs:
            raise ValueError(f'"{prefix}" is there twice')
        pairs[prefix] = _seconds(number)
    return tuple(sorted(pairs.items()))


def read_statuses(value: object) -> frozenset[int]:
    """Read HTTP statuses from 400 to 599."""
    items = _items(value)
    for item in items:
        if not re.fullmatch(r"[45][0-9]{2}", item):
            raise ValueError(f'"{shown(item)}" is not one')
    return frozenset(map(int, items))


def read_targets(value: object) -> tuple[str, ...]:
    """Read request targets to fetch at start; scheduled events are refused, however they are written."""
    targets = tuple(dict.fromkeys(_items(value)))
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


def read_socket_path(value: object) -> str | None:
    """Read the absolute path of a Unix socket to listen on; None where it is empty."""
    text = _text(value)
    if not text:
        return None
    # While the socket is made, its name is a little longer.
    return _socket_path(text, _LONGEST_SOCKET_PATH - len(".1234"))


def read_budget_file(value: object) -> str | None:
    """Read the absolute path of the file that holds a shared budget; None where it is empty."""
    text = _text(value)
    if not text:
        return None
    if not _LINUX:
        raise ValueError(
            "a budget is shared on Linux only: it takes file locks, a clock that all containers have in common, "
            "and a number that tells one start of the machine from another"
        )
    if len(text) < 2 or not text.startswith("/") or text.endswith("/") or not text.isprintable():
        raise ValueError
    return text


def read_upstream(value: object) -> str:
    """Return the text of an upstream that `parse_upstream` understands."""
    text = _text(value)
    parse_upstream(text)
    return text


def parse_upstream(text: str) -> Upstream:
    """Take `http://host[:port]` or `unix:/path` apart; the port is 80 where none is given."""
    scheme, _, rest = text.partition(":")
    match scheme.lower():
        case "unix":
            return Upstream(None, None, _socket_path(rest))
        case "https":
            raise ValueError("IMDS speaks plain HTTP only")
        case "http" if rest.startswith("//"):
            return _http(rest[2:].removesuffix("/"))
        case _:
            raise ValueError


def reaches_itself(host: str, port: int, upstream: Upstream) -> bool:
    """Say whether the upstream is the listener at host and port, as far as that shows without DNS."""
    if upstream.host is None or upstream.port != port:
        return False
    theirs = _reached(upstream.host)
    listener = _address(host)
    if listener is not None and listener.is_unspecified:
        return any((address := _address(text)) is not None and address.is_loopback for text in theirs)
    return not theirs.isdisjoint(_reached(host))


def _reached(host: str) -> frozenset[str]:
    address = _address(host)
    # Connecting to 0.0.0.0 or :: connects to this very machine.
    if host == "localhost" or (address is not None and address.is_unspecified):
        return frozenset({"127.0.0.1", "::1"})
    return frozenset({host if address is None else str(address)})


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_host_name(text: str) -> bool:
    return bool(_HOST_NAME.fullmatch(text)) and not _NUMBER_LABEL.fullmatch(text.rpartition(".")[2])


def _http(authority: str) -> Upstream:
    if "@" in authority:
        raise ValueError("it takes no user name and no password")
    if any(mark in authority for mark in "/?#"):
        raise ValueError("it takes no path, query or fragment, because each request brings its own")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError
    host = (match["host"] or match["six"]).lower()
    if not (_address(host) if match["six"] else _address(host) or _is_host_name(host)):
        raise ValueError(f'"{shown(host)}" is not a host')
    port = int(match["port"] or "80")
    if not 0 < port <= 65535:
        raise ValueError("a port is from 1 to 65535")
    return Upstream(host, port, None)


def _socket_path(text: str, longest: int = _LONGEST_SOCKET_PATH) -> str:
    if _WINDOWS:
        raise ValueError("Python knows no Unix sockets on Windows")
    path = re.sub(r"\A/+", "/", text)
    if len(path) < 2 or not path.startswith("/") or not path.isprintable():
        raise ValueError
    if len(path.encode()) > longest:
        raise ValueError(f"the path of a Unix socket has at most {longest} bytes")
    return path


def _prefix(text: str) -> str:
    prefix = text.lower().removesuffix("/")
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


def _items(value: object) -> list[str]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = _json(value)
        else:
            return [item for part in value.split(",") if (item := part.strip())]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError  # noqa: TRY004 - pydantic turns a ValueError into its own, and lets a TypeError out
    return [_text(item) for item in value]


def _pairs(value: object) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        if not value.lstrip().startswith("{"):
            for item in _items(value):
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
        yield _text(pair[0]), _text(pair[1])


def _json(text: str) -> object:
    try:
        # Objects are read as pairs, so that a name given twice is noticed.
        return json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise ValueError("it begins like JSON, but is not") from error


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'"{shown(value)}" is not one')  # noqa: TRY004 - as above
    return str(value).strip()
