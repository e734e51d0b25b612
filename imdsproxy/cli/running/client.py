"""Find the running proxy by its settings, and ask it."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from types import MappingProxyType
from typing import NamedTuple

from imdsproxy.config import Config
from imdsproxy.errors import NotRunningError

_TIMEOUT = 5.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # read from a setting, not listened at
NO_FIELDS: Mapping[str, str] = MappingProxyType({})


class Place(NamedTuple):
    """Where a proxy with these settings can be asked."""

    name: str
    """As people write it."""
    host: str
    port: int
    unix: str | None = None
    """The path of a Unix socket, which replaces host and port."""


class Answer(NamedTuple):
    """What was answered."""

    place: Place
    status: int
    body: bytes

    def __repr__(self) -> str:
        """Show no body, which can be any answer of a process at this place."""
        return f"Answer({self.place!r}, {self.status})"


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)  # type: ignore[attr-defined,unused-ignore]  # no such family on Windows
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def admin_places(config: Config) -> tuple[Place, ...]:
    """Return the places that serve the pages which change something: the admin listener and the Unix socket."""
    return tuple(_admin(config)) + tuple(_unix(config))


def page_places(config: Config) -> tuple[Place, ...]:
    """Return all places that serve the pages under `/-/`, in the order in which they are tried."""
    return (*admin_places(config), *_port(config))


def metadata_places(config: Config) -> tuple[Place, ...]:
    """Return the places that serve metadata."""
    return (*_unix(config), *_port(config))


def ask(
    places: tuple[Place, ...],
    method: str,
    target: str,
    fields: Mapping[str, str] = NO_FIELDS,
    timeout: float = _TIMEOUT,
) -> Answer:
    """Ask the first place that answers.

    Args:
        places: The places, in the order in which they are tried.
        method: The method.
        target: The path and the query.
        fields: The header fields.
        timeout: Seconds of silence after which a place counts as not answering.

    Raises:
        NotRunningError: None of them answers.
    """
    reasons = []
    for place in places:
        try:
            return _ask(place, method, target, fields, timeout)
        except (OSError, HTTPException) as error:
            reasons.append(f"{place.name}: {_why(error)}")
    raise NotRunningError(
        f"no imdsproxy answers ({'; '.join(reasons)}). Start it, or name the settings that it runs with: "
        "--port, --uds, --admin-port or --config-file"
    )


def connection_to(place: Place, timeout: float) -> HTTPConnection:
    """Return a connection to a place, which connects when it is used; `timeout` is in seconds of silence."""
    if place.unix is None:
        return HTTPConnection(place.host, place.port, timeout=timeout)
    return _UnixConnection(place.unix, timeout)


def _ask(place: Place, method: str, target: str, fields: Mapping[str, str], timeout: float) -> Answer:
    connection = connection_to(place, timeout)
    try:
        connection.request(method, target, headers=dict(fields))
        response = connection.getresponse()
        return Answer(place, response.status, response.read())
    finally:
        connection.close()


def _why(error: Exception) -> str:
    if isinstance(error, HTTPException):
        return "what answers there does not speak HTTP"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, PermissionError):
        return "this user may not open the socket"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _admin(config: Config) -> Iterator[Place]:
    if config.admin_port:
        yield _tcp(config.admin_host or config.host, config.admin_port)


def _unix(config: Config) -> Iterator[Place]:
    if config.uds is not None:
        yield Place(f"unix:{config.uds}", "localhost", 0, config.uds)


def _port(config: Config) -> Iterator[Place]:
    if config.port:
        yield _tcp(config.host, config.port)


def _tcp(host: str, port: int) -> Place:
    host = _WILDCARDS.get(host, host)
    return Place(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", host, port)
