"""Read a request from ASGI: its target, its body, and whether the client is still connected. Send its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from imdsproxy.protocol.messages import Refusal
from imdsproxy.proxy.waiting import Waiting
from imdsproxy.records import RequestRecord
from imdsproxy.server.extensions import PRESENCE_EXTENSION, TARGET_EXTENSION, extension
from imdsproxy.server.presence import Presence

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_PIPELINED = Refusal(
    400,
    "pipelined",
    "invalid_request",
    "Under this server, a connection must wait for each answer before it sends the next request; "
    "only `imdsproxy serve` accepts pipelined requests.",
)

LONGEST_BODY = 65536
"""The maximum length in bytes of a request's body."""


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
    """Return whether the client disconnected before the proxy has decided about its request."""
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
