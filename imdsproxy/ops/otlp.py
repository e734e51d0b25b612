"""OpenTelemetry: makes spans, and exports them by OTLP over HTTP.

Only this module imports OpenTelemetry, and only `parts/extras` imports this module, where traces are on.
The SDK samples (`OTEL_TRACES_SAMPLER`), and its batch processor exports from a thread of its own, with a bounded queue.
The thread is started by the first span, so that it runs in the process that serves, after any fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from imdsproxy import __version__
from imdsproxy.ops import traces
from imdsproxy.ops.log_limit import RepeatLimit
from imdsproxy.ops.otlp_variables import checked_endpoint
from imdsproxy.ops.spans import Attributes, SpanEnd
from imdsproxy.protocol.messages import Headers

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 3.0
"""The longest time that the end of the process waits for the last spans. Requests under way may take ten seconds before
that, and systemd ends the service after fifteen."""
_LOG_INTERVAL = 60.0
_LIBRARY = "opentelemetry"
_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_NO_CONTEXT = Context()
_ERROR = Status(StatusCode.ERROR)


class Otlp:
    """Makes spans, and exports the sampled ones. It implements `traces.Tracer`."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read OpenTelemetry's variables. Nothing is started or connected.

        Raises:
            SettingsError: One of them asks for what this exporter cannot do.
        """
        endpoint = checked_endpoint(environment)
        session = _Session()
        self._exporter = _Exporter(OTLPSpanExporter(session=session), endpoint, session)
        name = {"service.name": "imdsproxy", "service.version": __version__}
        resource = Resource.create(name).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("imdsproxy", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._started = False
        library = logging.getLogger(_LIBRARY)
        library.handlers[:] = [_Messages(self._exporter)]
        library.propagate = False
        logger.info("traces are exported", extra={"fields": {"endpoint": endpoint}})

    def start(
        self,
        kind: traces.Kind,
        name: str,
        at: float,
        parent: traces.Span | Mapping[str, str] | None,
        attributes: Attributes,
    ) -> Span:
        """Start a span; see `traces.Tracer`."""
        if not self._started:
            self._started = True
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        if isinstance(parent, Span):
            context = set_span_in_context(parent, _NO_CONTEXT)
        elif isinstance(parent, Mapping) and parent:
            context = self._propagator.extract(parent, _NO_CONTEXT)
        else:
            context = _NO_CONTEXT
        return self._tracer.start_span(name, context, _KINDS[kind], attributes, start_time=_nanoseconds(at))

    def link(self, span: traces.Span, other: traces.Span) -> None:
        """Link a span to another; see `traces.Tracer`."""
        assert isinstance(span, Span)  # noqa: S101  # `start` made it
        assert isinstance(other, Span)  # noqa: S101  # the same
        span.add_link(other.get_span_context())

    def end(self, span: traces.Span, end: SpanEnd, at: float) -> None:
        """End a span; see `traces.Tracer`."""
        assert isinstance(span, Span)  # noqa: S101  # `start` made it
        if end.name:
            span.update_name(end.name)
        span.set_attributes(end.attributes)
        if end.failed:
            span.set_status(_ERROR)
        span.end(_nanoseconds(at))

    def fields(self, span: traces.Span) -> Headers:
        """Return the fields that continue the trace at another server."""
        assert isinstance(span, Span)  # noqa: S101  # `start` made it
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span, _NO_CONTEXT))
        return tuple((name.encode("ascii"), value.encode("ascii", "ignore")) for name, value in carrier.items())

    async def close(self) -> None:
        """Export the last spans, for `FLUSH_SECONDS` at most.

        While the collector does not answer, no time is spent on it.
        """
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            if self._exporter.failing:
                self._exporter.shutdown()
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed, because the time was over
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="imdsproxy-traces-end", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            logger.warning("the last spans were not exported in time", extra={"fields": {"seconds": FLUSH_SECONDS}})


class _Session(requests.Session):
    """The connections to the collector. The latest problem is kept, because the exporter's last message may lack it."""

    def __init__(self) -> None:
        super().__init__()
        # `http_proxy` may be this proxy, by which clients reach IMDS. Spans go to the endpoint itself.
        self.trust_env = False
        self.problem: str | None = None
        """Why the latest request failed; None if it did not."""

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        """Send one request."""
        try:
            response = super().send(request, **settings)
        except Exception as error:
            self.problem = _reason(error)
            raise
        self.problem = None if response.ok else f"{response.status_code} {response.reason}"
        return response


class _Exporter(SpanExporter):
    """Exports, and logs when the collector begins to fail and when it answers again."""

    def __init__(self, exporter: SpanExporter, endpoint: str, session: _Session) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._session = session
        self._ended = False
        self.failing = False
        """Whether the latest export failed."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch of spans."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self.failing:
            logger.warning(
                "traces cannot be exported; spans are dropped until the collector answers",
                extra={"fields": {"endpoint": self._endpoint, "because": self._session.problem or "unknown"}},
            )
        elif self.failing and not failed:
            logger.info("traces are exported again", extra={"fields": {"endpoint": self._endpoint}})
        self.failing = failed
        return result

    @property
    def in_trouble(self) -> bool:
        """Whether the latest export, or the latest request of the one under way, has failed."""
        return self.failing or self._session.problem is not None

    def shutdown(self) -> None:
        """End an export under way, and every wait before its next try."""
        if not self._ended:
            self._ended = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return True, because nothing is kept here."""
        del timeout_millis
        return True


class _Messages(logging.Handler):
    """Passes on what OpenTelemetry logs, each place once in a while. A failing collector has its own line instead."""

    def __init__(self, exporter: _Exporter) -> None:
        super().__init__(logging.WARNING)
        self._exporter = exporter
        self._limit = RepeatLimit(_LOG_INTERVAL)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a message on, unless it is about a failing collector."""
        if self._exporter.in_trouble or record.name.startswith(f"{_LIBRARY}.exporter"):
            return
        left_out = self._limit.admit((record.name, record.lineno), time.monotonic())
        if left_out is not None:
            logger.warning("OpenTelemetry: %s", record.getMessage(), extra={"fields": {"not_logged": left_out}})


def _reason(error: BaseException) -> str:
    """Return the innermost cause of an error in words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error) or type(error).__name__


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
