"""What the listeners and connections of `imdsproxy serve` call of the application, besides ASGI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.clock import Clock
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import Key, Refusal
from imdsproxy.records import RequestObserver
from imdsproxy.server.known_heads import KnownHeads
from imdsproxy.server.outsiders import Outsiders

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from imdsproxy.access.guard import Guard


class HostedApplication(Protocol):
    """An ASGI application that answers fresh hits, and bytes that are not a request, in one step."""

    clock: Clock
    known_heads: KnownHeads
    observe: RequestObserver
    """Notifies every observer of an answer that the connection has written itself."""
    peers: PeerLookup
    """Looks clients up."""
    access: Guard | None
    """The access rules, by which every connection's client is looked up; None for no rules."""
    outsiders: Outsiders
    """Recognises the clients that may not ask at all."""
    names_clients: bool
    """Whether an observer uses the request's fields and the client's name, so that every connection's client is looked
    up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        ...

    def accepted_hosts(self, *, unix: bool) -> AcceptedHosts:
        """Return the host names accepted at a listener."""
        ...

    def fresh_hit(  # noqa: PLR0913  # the parts of a head, and its client
        self,
        raw: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        now: float,
        accepted_hosts: AcceptedHosts,
        http_version: str = "1.1",
        *,
        subject: Subject = UNKNOWN_SUBJECT,
    ) -> tuple[RenderedHit, Key] | None:
        """Return the fresh hit for a GET, and its key, or None if the request needs the full path."""
        ...

    def refuse(self, refusal: Refusal, client: str) -> bytes:
        """Return the answer to bytes that are not a valid request, and notify every observer."""
        ...

    def watch_connections(self, count: Callable[[], int], limit: int) -> None:
        """Show the number of connections that this function returns, and their limit, in the metrics."""
        ...

    def begin_shutdown(self) -> None:
        """Report that the proxy is not ready any more."""
        ...

    def hang_up(self) -> None:
        """Drop every cached entry, and read the access file again (SIGHUP)."""
        ...
