"""Traces: a span for each request, and below it a span for each upstream attempt that it caused.

A request on the full path begins a span, and its attempts find it in the context of their task, which is a copy of the
context that started the fetch. The attempts of a collapsed fetch or of a background refresh are thereby children of the
request that started it. A hit of the fast path has no attempts, so its span is made after its answer.

A hit starts no trace, because hits are many, cost IMDS nothing, and are counted by the metrics. It has a span if its
client samples its own trace.

`tracer` makes and exports the spans; only the one in `otlp` knows OpenTelemetry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Literal, Protocol

from imdsproxy.clock import Clock
from imdsproxy.ops import spans
from imdsproxy.ops.spans import Attributes, SpanEnd
from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.messages import Failure, Headers, Response
from imdsproxy.protocol.tracing import TRACE_CONTEXT, is_sampled, trace_context, trace_context_of_head
from imdsproxy.records import Client, Outcome, RequestRecord, UpstreamAttempt
from imdsproxy.upstream.task import Sender

# Spans of requests that started a fetch, for links of the clients that wait for it. The oldest is forgotten.
_MOST_LEADERS = 256

Kind = Literal["server", "client", "internal"]


class Span(Protocol):
    """A span that has begun."""

    def is_recording(self) -> bool:
        """Return whether it is sampled and has not ended."""
        ...


class Tracer(Protocol):
    """Makes and exports spans. Times are seconds since 1970."""

    def start(
        self, kind: Kind, name: str, at: float, parent: Span | Mapping[str, str] | None, attributes: Attributes
    ) -> Span:
        """Start a span.

        Args:
            kind: Its kind.
            name: Its name.
            at: When it began.
            parent: Its parent: a span, or the trace context of a client's request. None or an empty one starts a trace.
            attributes: What is known when it begins.
        """
        ...

    def link(self, span: Span, other: Span) -> None:
        """Link a span that has not ended to another, which is not its parent."""
        ...

    def end(self, span: Span, end: SpanEnd, at: float) -> None:
        """End a span, and export it if it is sampled."""
        ...

    def fields(self, span: Span) -> Headers:
        """Return the fields that continue the trace at another server."""
        ...

    async def close(self) -> None:
        """Export what is not yet exported, within a bounded time."""
        ...


@dataclass(slots=True)
class _Open:
    """A span that is not ended yet, and its name so far."""

    span: Span
    name: str
    sampled: bool = False
    """Whether the request's client samples its trace."""
    ended: bool = False


_request: ContextVar[_Open | None] = ContextVar("imdsproxy_request_span", default=None)
_attempt: ContextVar[_Open | None] = ContextVar("imdsproxy_attempt_span", default=None)


class Traces:
    """Makes spans from the records of requests and of upstream attempts."""

    def __init__(self, tracer: Tracer, clock: Clock) -> None:
        self._tracer = tracer
        self._clock = clock
        self._leaders: dict[int, Span] = {}
        self.close = tracer.close

    def begin(self, head: bytes, fields: Iterable[tuple[bytes, bytes]]) -> Token[_Open | None]:
        """Begin the span of a request on the full path, and return what ends it.

        Args:
            head: The request's method and target, with a space between them.
            fields: Its fields, with names in lower case.
        """
        name, attributes = spans.request_start(head)
        context = trace_context(fields)
        span = self._tracer.start("server", name, self._clock.wall(), context, attributes)
        return _request.set(_Open(span, name, is_sampled(context)))

    def leave(self, begun: Token[_Open | None]) -> None:
        """End the span of a request without an answer, whose client has disconnected."""
        opened = _request.get()
        if opened is not None and not opened.ended:
            self._end(opened, spans.GONE)
        _request.reset(begun)

    def observe(self, record: RequestRecord, seconds: float, client: Client | None, request: bytes) -> None:
        """End the span of an answered request; a hit of the fast path begins it, too. Other bytes have no span."""
        if not request:
            return
        opened = _request.get()
        if opened is None or opened.ended:
            context = trace_context_of_head(request)
            if record.outcome is Outcome.HIT and not is_sampled(context):
                return
            name, attributes = spans.request_start(request)
            opened = _Open(self._tracer.start("server", name, self._clock.wall() - seconds, context, attributes), name)
        elif record.outcome is Outcome.HIT and not opened.sampled:
            opened.ended = True  # it is never exported, because its span is not ended
            return
        leader = self._leaders.get(record.fetch or 0)
        if leader is not None and record.outcome is Outcome.COLLAPSED and opened.span.is_recording():
            self._tracer.link(opened.span, leader)
        self._end(opened, spans.request_end(record, client, opened.name))

    def sender(self, sender: Sender, upstream: Address) -> Sender:
        """Return a sender that begins a span for each request it sends."""
        return _TracedSender(self._tracer, self._clock, sender, upstream)

    def observe_attempt(self, attempt: UpstreamAttempt) -> None:
        """End the span of an upstream attempt. One that was not sent has an internal span: its wait for a permit."""
        opened, request = _attempt.get(), _request.get()
        _attempt.set(None)
        if request is not None and attempt.fetch is not None:
            self._leaders[attempt.fetch] = request.span
            if len(self._leaders) > _MOST_LEADERS:
                del self._leaders[next(iter(self._leaders))]
        if attempt.status is None:
            began = self._clock.wall() - attempt.waited
            parent = None if request is None else request.span
            opened = _Open(self._tracer.start("internal", "wait", began, parent, {}), "wait")
        if opened is not None:
            self._end(opened, spans.attempt_end(attempt, opened.name))

    def _end(self, opened: _Open, end: SpanEnd) -> None:
        opened.ended = True
        if opened.span.is_recording():
            self._tracer.end(opened.span, end, self._clock.wall())


class _TracedSender:
    """Begins a span before each request is sent. The observer of attempts ends it, in the same task."""

    def __init__(self, tracer: Tracer, clock: Clock, sender: Sender, upstream: Address) -> None:
        self._tracer = tracer
        self._clock = clock
        self._sender = sender
        self._upstream = upstream
        # IMDS reads no trace context. Any other upstream may be another imdsproxy.
        self._continues = upstream != IMDS

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Send one request; see `Sender`."""
        request = _request.get()
        name, attributes = spans.attempt_start(method, target, self._upstream)
        parent = None if request is None else request.span
        span = self._tracer.start("client", name, self._clock.wall(), parent, attributes)
        if self._continues:
            kept = (field for field in headers if field[0] not in TRACE_CONTEXT)
            headers = (*kept, *self._tracer.fields(span))
        _attempt.set(_Open(span, name))
        try:
            return await self._sender.send(method, target, headers, body, slow=slow)
        except asyncio.CancelledError:
            if span.is_recording():
                self._tracer.end(span, spans.CANCELLED, self._clock.wall())
            raise
