"""The ASGI application: every request is read here, answered by `metadata` or `operations`, and observed.

Starlette serves the pages and the lifespan.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING

from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.cache.shares import Shares
from imdsproxy.clock import Clock
from imdsproxy.ops.history import History
from imdsproxy.ops.metrics import Metrics
from imdsproxy.ops.pages import pages
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.status_reader import StatusReader
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.client_ranges import ClientRanges
from imdsproxy.protocol.messages import Key, Refusal, Request
from imdsproxy.protocol.request_parser import Readings, read
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import RequestObserver, notify_all, refused
from imdsproxy.server.asgi import send_record, target
from imdsproxy.server.client_facts import ClientFacts
from imdsproxy.server.connection_refusals import NOT_A_CLIENT, written
from imdsproxy.server.extensions import ADMIN_EXTENSION, by_own_server, by_unix_socket, extension
from imdsproxy.server.head_rules import head_of
from imdsproxy.server.known_heads import KnownHeads
from imdsproxy.server.lifetime import Lifetime
from imdsproxy.server.metadata import MetadataRequests
from imdsproxy.server.operations import Operations
from imdsproxy.server.outsiders import Outsiders

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from imdsproxy.access.groups import Memberships

logger = logging.getLogger(__name__)

_ADMIN_ONLY = Refusal(
    404,
    "admin-only",
    "not_found",
    "IMDSPROXY_ADMIN_PORT serves only the pages under /-/; request metadata at IMDSPROXY_PORT or IMDSPROXY_UDS.",
)


class Application:
    """One proxy as an ASGI application."""

    def __init__(  # noqa: PLR0913  # the parts it joins, all by name
        self,
        *,
        proxy: Proxy,
        metrics: Metrics,
        history: History,
        status: StatusReader,
        readiness: Readiness,
        accepted_hosts: AcceptedHosts,
        shares: Shares,
        clock: Clock,
        observers: Sequence[RequestObserver],
        peers: PeerLookup | None = None,
        names_clients: bool = False,
        clients: ClientRanges | None = None,
        on_drop: Callable[[], None] = lambda: None,
        observe_refusal: Callable[[str, str], None] = lambda _detail, _client: None,
        memberships: Memberships | None = None,
        reload_access: Callable[[], None] = lambda: None,
        start: Callable[[], None] = lambda: None,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Join the parts.

        Args:
            proxy: Answers requests under `/metadata/`.
            metrics: The metrics page.
            readiness: Whether the proxy is ready.
            accepted_hosts: The host names accepted over TCP.
            shares: How memory is divided.
            clock: The clock.
            observers: Called with each answer, in this order.
            peers: Looks clients up; None for a lookup of its own.
            names_clients: Whether an observer uses the client's name and the request's fields.
            clients: The address ranges that may ask at all; None for every client.
            on_drop: Called when entries were dropped by a signal or a purge.
            observe_refusal: Called with the reason and the client when bytes are refused that are not a valid request.
            memberships: What is known of the groups of users; None if nothing is.
            reload_access: Reads the access file again, if there is one.
            start: Called within the event loop when the lifespan begins, or with the first request if there is none.
            close: Awaited when the lifespan ends.
        """
        self.proxy = proxy
        self.metrics = metrics
        self.status = status
        self._history = history
        self.readiness = readiness
        self.clock = clock
        self.observe = notify_all(observers)
        self.peers = peers = peers or PeerLookup()
        self.names_clients = names_clients
        self.access = proxy.access
        self.outsiders = Outsiders(clients, clock)
        self._on_drop = on_drop
        self._observe_refusal = observe_refusal
        self._metadata = MetadataRequests(proxy, ClientFacts(proxy, peers, memberships, clock), history, readiness)
        self._reload_access = reload_access
        self.known_heads = KnownHeads(proxy, shares.heads)
        self._accepted_hosts = {False: accepted_hosts, True: replace(accepted_hosts, any_name=True)}
        self._readings = Readings(shares.readings)
        self.lifetime = Lifetime(
            readiness=readiness, history=history, clock=clock, peers=peers, start=start, close=close
        )
        self._pages = pages(readiness, metrics, status, self.lifetime.lifespan, by_own_server)
        self._operations = Operations(self._pages, self._drop, self.date)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        if self.outsiders.include_client_of(scope):
            served = refused(NOT_A_CLIENT)
            self.observe(served, 0.0, scope["client"], b"")
            await send_record(served, self.date, send)
            return
        began = self.clock.monotonic()
        if self.lifetime.getting_ready is None:  # a server without lifespan events
            self.lifetime.begin()
        written = target(scope, receive)
        if isinstance(written, Refusal):
            request: Request | Refusal = written
        else:
            request = read(
                scope["method"],
                written,
                scope["headers"],
                self.accepted_hosts(unix=by_unix_socket(scope)),
                scope["http_version"],
                readings=self._readings,
            )
        if isinstance(request, Request):
            if request.target.segments[:1] == ("-",):
                await self._operations.serve(request, scope, receive, send)
                return
            if extension(scope, ADMIN_EXTENSION):
                served = refused(_ADMIN_ONLY)
            else:
                answered = await self._metadata.answer(request, scope, receive)
                if answered is None:
                    return
                served = answered
                self.known_heads.note_answer(request, served)
        else:
            served = refused(request)
        headers = scope["headers"]  # with the answer, a connection drops the fields of a large request
        await send_record(served, self.date, send)
        wire = b"-" if isinstance(written, Refusal) else written
        head = scope["method"].encode("utf-8", "backslashreplace") + b" " + wire
        if self.names_clients:
            head = head_of(head, headers)
        now = self.clock.monotonic()
        self._history.count_answers(now)
        self.observe(served, now - began, scope.get("client"), head)

    def accepted_hosts(self, *, unix: bool) -> AcceptedHosts:
        """Return the host names accepted at a listener. A Unix socket accepts every name."""
        return self._accepted_hosts[unix]

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
        """Return the fresh hit for a GET, and its key, or None if the request needs the full path.

        The hit is the answer that `__call__` would send.
        """
        request = read("GET", raw, headers, accepted_hosts, http_version, readings=self._readings)
        if isinstance(request, Refusal):
            return None
        hit = self.proxy.fresh_hit(request, now, subject)
        return None if hit is None else (hit, request.target.key)

    def refuse(self, refusal: Refusal, client: str) -> bytes:
        """Return the answer to bytes that are not a valid request, and notify the observers."""
        self.observe(refused(refusal), 0.0, (client, 0), b"")
        self._observe_refusal(refusal.reason, client)
        return written(refusal, self.date())

    def date(self) -> tuple[bytes, bytes]:
        """Return the Date of an answer that begins here (RFC 9110 section 6.6.1)."""
        return b"date", formatdate(self.clock.wall(), usegmt=True).encode("ascii")

    def watch_connections(self, count: Callable[[], int], limit: int) -> None:
        """Show the number of connections that this function returns, and their limit, in the metrics."""
        self.metrics.watch_connections(count, limit)

    def begin_shutdown(self) -> None:
        """Report that the proxy is not ready any more."""
        self.lifetime.begin_shutdown()

    def hang_up(self) -> None:
        """Drop every cached entry, and read the access file again (SIGHUP)."""
        self._reload_access()
        self.drop_entries()

    def drop_entries(self) -> None:
        """Drop every cached entry."""
        logger.info("cache emptied", extra={"fields": {"entries": self._drop()}})

    def _drop(self, path: str | None = None) -> int:
        count = self.proxy.drop(path)
        self._on_drop()
        if path is None:
            self.known_heads.clear()
        return count
