"""Read a request from ASGI: its target, its client, its body, and whether the client is still connected; answer it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote

from imdsproxy.access.groups import Memberships
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.protocol.messages import Refusal, Request
from imdsproxy.protocol.peer import Peer, PeerKind
from imdsproxy.proxy.waiting import Waiting
from imdsproxy.records import RequestRecord
from imdsproxy.server.presence import Presence

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

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

_PIPELINED = Refusal(
    400,
    "pipelined",
    "invalid_request",
    "Under this server, a connection must wait for each answer before it sends the next request; "
    "only `imdsproxy serve` accepts pipelined requests.",
)

LONGEST_BODY = 65536
"""The maximum length in bytes of a request's body."""


ENDED = Peer(unknown="the connection has ended")
"""The client of a connection that had ended before it was looked up."""


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


def peer_of(request: Request, scope: Scope) -> Peer:
    """Return what is known of the client, from the kernel or from another server.

    `Imdsproxy-Via` is believed at a Unix socket only: IMDSPROXY_UDS decides who may connect there, so the operator has
    named those that may be proxies. Over TCP, any client can write that field.
    """
    caller = _caller(scope)
    if caller is None:
        client = scope.get("client")
        return Peer(
            address=client[0] if client else None,
            kind=PeerKind.TCP if client else PeerKind.NONE,
            unknown="only `imdsproxy serve` looks clients up",
        )
    peer = caller.peer()
    return peer._replace(proxy=request.hops[-1]) if request.hops and peer.kind is PeerKind.UNIX else peer


class Asking:
    """The client of one request, which is found the first time that it matters."""

    __slots__ = ("_request", "_scope", "peer")

    def __init__(self, request: Request, scope: Scope) -> None:
        self._request = request
        self._scope = scope
        self.peer: Peer | None = None
        """The client; None if it did not matter."""

    def __call__(self) -> Peer:
        """Return the client."""
        if self.peer is None:
            self.peer = peer_of(self._request, self._scope)
        return self.peer


async def note_process(scope: Scope, peers: PeerLookup) -> None:
    """Add the process to what the connection knows of its client, if a search may find it. It takes milliseconds."""
    caller = _caller(scope)
    if caller is not None and peers.can_find_process(peer := caller.peer()):
        caller.note_peer(await peers.with_process(peer))


async def note_groups(scope: Scope, memberships: Memberships) -> None:
    """Look the groups of the client's user up, unless they are known. It can take seconds."""
    caller = _caller(scope)
    user = None if caller is None else caller.peer().user
    if user is not None:
        await memberships.learn(user)


class _Gone:
    """A connection that has ended before its client mattered."""

    def peer(self) -> Peer:
        return ENDED

    def note_peer(self, peer: Peer | None) -> None:
        del peer


def _caller(scope: Scope) -> Caller | None:
    """Return the connection, or None if the server is another than `imdsproxy serve`."""
    reference = cast("weakref.ref[Caller] | None", extension(scope, PEER_EXTENSION))
    return None if reference is None else reference() or _Gone()


def target(scope: Scope, receive: Receive) -> bytes | Refusal:
    """Return the target as it was on the wire, or a refusal if it is unknown and must not be guessed.

    The authority of an absolute-form target overrides Host (RFC 9112 section 3.2.2). `imdsproxy serve` passes the
    target on. hypercorn and uvicorn's h11 leave the authority in `raw_path`. uvicorn's httptools has it in its
    protocol only. granian drops it, so Host decides there.
    """
    written = extension(scope, TARGET_EXTENSION)
    if isinstance(written, bytes):
        return written
    known = _target_of_uvicorn(receive)
    if known is not None:
        return known
    path = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    query: bytes = scope["query_string"]
    return bytes(path) + (b"?" + query if query else b"")


def _target_of_uvicorn(receive: Receive) -> bytes | Refusal | None:
    """Return the target that uvicorn's httptools protocol has read; None under any other server.

    The protocol has the target of the newest request only. A request with another one behind it is refused, because
    its authority is unknown. Clients that pipeline are rare.
    """
    cycle = getattr(receive, "__self__", None)
    protocol = getattr(getattr(cycle, "on_response", None), "__self__", None)
    url = getattr(protocol, "url", None)
    if not isinstance(url, bytes):
        return None
    return url if getattr(protocol, "scope", None) is getattr(cycle, "scope", None) else _PIPELINED


async def read_body(receive: Receive) -> bytes | None:
    """Return a request's body, cut off soon after `LONGEST_BODY` bytes; None if the client has disconnected."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False) or len(body) > LONGEST_BODY:
            return bytes(body)


def client_has_left(scope: Scope) -> bool:
    """Return whether the client has disconnected before its request is decided about."""
    presence = extension(scope, PRESENCE_EXTENSION)
    return isinstance(presence, Presence) and presence.has_left()


def unless_gone(answer: Waiting, scope: Scope, receive: Receive) -> Coroutine[Any, Any, RequestRecord | None]:
    """Return the answer, or None as soon as the client has disconnected."""
    presence = extension(scope, PRESENCE_EXTENSION)
    return presence.wait_for(answer) if isinstance(presence, Presence) else _watching(answer, receive)


async def _watching(answer: Waiting, receive: Receive) -> RequestRecord | None:
    presence = Presence()
    watch = asyncio.get_running_loop().create_task(_watch(receive, presence))
    try:
        return await presence.wait_for(answer)
    finally:
        watch.cancel()


async def _watch(receive: Receive, presence: Presence) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    presence.leave()


async def send_record(record: RequestRecord, date: Callable[[], tuple[bytes, bytes]], send: Send) -> None:
    """Send an answer. The proxy's own answer gets a Date; one of IMDS has its own (RFC 9110 section 6.6.1)."""
    headers = record.headers()
    if record.forward is None and record.age is None:
        headers.append(date())
    await send({"type": "http.response.start", "status": record.response.status, "headers": headers})
    await send({"type": "http.response.body", "body": record.response.body})
