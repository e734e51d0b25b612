"""The requests under `/metadata/`, from the body that is still to be read to the record of the answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imdsproxy.ops.history import History
from imdsproxy.ops.readiness import Readiness
from imdsproxy.protocol.cache_status import ENDING
from imdsproxy.protocol.messages import Refusal, Request
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import Outcome, RequestRecord, refused
from imdsproxy.server.asgi import LONGEST_BODY, client_has_left, read_body, unless_gone
from imdsproxy.server.caller import Asking
from imdsproxy.server.client_facts import ClientFacts

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

_BODY_TOO_LONG = Refusal(413, "body-too-long", "content_too_large", f"Send at most {LONGEST_BODY} bytes.")
_ENDING = Refusal(
    503,
    ENDING,
    "service_unavailable",
    "The proxy is being stopped; ask again.",
    ((b"retry-after", b"1"),),
)
_REFUSED = Outcome.REFUSED


class MetadataRequests:
    """Has the proxy answer, and stops waiting when the client disconnects."""

    def __init__(self, proxy: Proxy, client_facts: ClientFacts, history: History, readiness: Readiness) -> None:
        """Join the parts.

        Args:
            proxy: Answers the requests.
            client_facts: Looks up what rules and turns need of a client.
            history: Counts the requests of each client.
            readiness: Whether the proxy is being stopped.
        """
        self._proxy = proxy
        self._client_facts = client_facts
        self._history = history
        self._readiness = readiness

    async def answer(self, request: Request, scope: Scope, receive: Receive) -> RequestRecord | None:
        """Return the record of the answer, or None if the client has disconnected."""
        if request.method == "POST":
            body = await read_body(receive)
            if body is None:
                return None
            if len(body) > LONGEST_BODY:
                return refused(_BODY_TOO_LONG)
            request = request._replace(body=body)
        await self._client_facts.learn(request, scope)
        if client_has_left(scope):  # a fetch would start, and wait for a client that never leaves it
            return None
        client = Asking(request, scope)
        answer = self._proxy.answer(request, client)
        record: RequestRecord | None = None
        try:
            record = answer if isinstance(answer, RequestRecord) else await unless_gone(answer, scope, receive)
        except asyncio.CancelledError:
            if not self._readiness.stopping:
                raise
            record = refused(_ENDING)  # the time for the shutdown is over; the client still gets an answer
        finally:
            if client.peer is not None:
                self._history.count_request(client.peer, refused=record is not None and record.outcome is _REFUSED)
        return record
