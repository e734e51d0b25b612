"""What the exporter logs, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from imdsproxy.errors import SettingsError
from imdsproxy.ops import otlp
from imdsproxy.ops.otlp import Otlp
from imdsproxy.ops.spans import SpanEnd
from tests.otlp import Collector
from tests.servers import Server

LIBRARY = logging.getLogger("opentelemetry")
END = SpanEnd("GET instance", {"imdsproxy.outcome": "hit"}, failed=True)


@pytest.fixture(autouse=True)
def library_logger() -> Iterator[None]:
    """Leave the library's logger as it was, and no thread."""
    handlers, propagate = LIBRARY.handlers[:], LIBRARY.propagate
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    LIBRARY.handlers[:], LIBRARY.propagate = handlers, propagate


def exporter(monkeypatch: pytest.MonkeyPatch, url: str, **variables: str) -> Otlp:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    return Otlp()


def emit(tracer: Otlp, count: int = 1) -> None:
    for _ in range(count):
        tracer.end(tracer.start("server", "GET", time.time(), None, {}), END, time.time())


def test_spans_reach_the_collector_with_resource_and_fields_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        tracer = exporter(
            monkeypatch,
            collector.url,
            SERVICE_NAME="imds of node 7",
            RESOURCE_ATTRIBUTES="a=b",
            EXPORTER_OTLP_HEADERS="x-key=secret",
            EXPORTER_OTLP_COMPRESSION="gzip",
        )
        emit(tracer)
        asyncio.run(tracer.close())
        (span,) = collector.spans
    assert (span.name, span.failed, span.outcome) == ("GET instance", True, "hit")
    assert span.resource["service.name"] == "imds of node 7"
    assert span.resource["a"] == "b"
    assert b"x-key: secret" in collector.heads[0]


def test_thread_begins_with_the_first_span(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        before = threading.active_count()
        tracer = exporter(monkeypatch, collector.url)
        assert threading.active_count() == before
        emit(tracer)
        assert threading.active_count() == before + 1
        asyncio.run(tracer.close())


class Silent(Server):
    """Takes an export and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def serve(self, connection: socket.socket) -> None:
        connection.recv(1)
        self.ended.wait(30)


def test_end_does_not_wait_for_a_silent_collector(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otlp, "FLUSH_SECONDS", 0.05)
    with Silent() as collector:
        tracer = exporter(monkeypatch, collector.url, EXPORTER_OTLP_TIMEOUT="1")
        emit(tracer)
        asyncio.run(tracer.close())
        collector.ended.set()
    assert "the last spans were not exported in time" in caplog.text


def test_full_queue_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with Silent() as collector:
        tracer = exporter(
            monkeypatch,
            collector.url,
            BSP_MAX_QUEUE_SIZE="4",
            BSP_MAX_EXPORT_BATCH_SIZE="4",
            BSP_SCHEDULE_DELAY="60000",
            EXPORTER_OTLP_TIMEOUT="1",
        )
        emit(tracer, 100)
        monkeypatch.setattr(otlp, "FLUSH_SECONDS", 0.05)
        asyncio.run(tracer.close())
        collector.ended.set()
    assert [record.getMessage() for record in caplog.records].count("OpenTelemetry: Queue full, dropping Span.") == 1


def test_endpoint_is_logged_without_what_may_be_secret(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Otlp({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:word@collector/x?key=y"})
    assert [vars(record)["fields"] for record in caplog.records] == [{"endpoint": "https://collector/x"}]


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER=console cannot be used"):
        Otlp({"OTEL_TRACES_EXPORTER": "console"})
