"""What `imdsproxy serve` passes on with a request besides ASGI, in `scope["extensions"]`."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol

from imdsproxy.protocol.peer import Peer
from imdsproxy.server.presence import Presence

if TYPE_CHECKING:
    from starlette.types import Scope

TARGET_EXTENSION = "imdsproxy.protocol.target"
"""The name in `scope["extensions"]` of the request target as it was on the wire."""

ADMIN_EXTENSION = "imdsproxy.admin"
"""The name there of a bool: the request came by a listener with the pages under `/-/` only."""

UNIX_EXTENSION = "imdsproxy.unix"
"""The name there of a bool: the request came by a Unix socket."""

PRESENCE_EXTENSION = "imdsproxy.presence"
"""The name there of the client's `Presence`."""

PEER_EXTENSION = "imdsproxy.peer"
"""The name there of a weak reference to the `Caller`, which knows the client.

It is weak, because the connection refers to the scope, and such a circle would wait for the garbage collector.
"""


class Caller(Protocol):
    """A connection, as far as it knows its client."""

    def peer(self) -> Peer:
        """Return the client, and look it up the first time."""
        ...

    def note_peer(self, peer: Peer | None) -> None:
        """Remember what is known of the client."""
        ...


def extensions(target: bytes, presence: Presence, caller: Caller, *, admin: bool, unix: bool) -> dict[str, object]:
    """Return the extensions of a request's scope under `imdsproxy serve`.

    Args:
        target: The target as it was on the wire.
        presence: Whether the client is still connected.
        caller: The connection, which knows the client.
        admin: Whether the request came by a listener with the pages under `/-/` only.
        unix: Whether it came by a Unix socket.
    """
    return {
        TARGET_EXTENSION: target,
        ADMIN_EXTENSION: admin,
        UNIX_EXTENSION: unix,
        PRESENCE_EXTENSION: presence,
        PEER_EXTENSION: weakref.ref(caller),
    }


def extension(scope: Scope, name: str) -> object:
    """Return the value of an extension, or None if the server is another than `imdsproxy serve`."""
    return (scope.get("extensions") or {}).get(name)


def by_own_server(scope: Scope) -> bool:
    """Return whether `imdsproxy serve` passed the request on, and not another server."""
    return extension(scope, TARGET_EXTENSION) is not None


def by_unix_socket(scope: Scope) -> bool:
    """Return whether a request came by a Unix socket.

    Under another server, `server` is then a path without a port (ASGI, HTTP connection scope). Some servers have a host
    without a port over TCP, so a path must begin with a slash.
    """
    ours = extension(scope, UNIX_EXTENSION)
    host, port = scope.get("server") or ("", 0)
    return bool(ours) if ours is not None else port is None and host.startswith("/")
