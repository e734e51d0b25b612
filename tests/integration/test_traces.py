"""Traces over real sockets: the proxy as users start it, the emulator behind it, and a receiver of OTLP."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from imdsproxy.emulator.faults import Fault
from tests.kit import (
    METADATA,
    ROOT,
    Arrivals,
    ProxyProcess,
    environment,
    free_port,
    get,
    refused_start,
    running_proxy,
    talk,
    unused,
    wait_for_log,
    wait_until,
)
from tests.otlp import Collector
from tests.servers import forbidden_port, read_head
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.process

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"
NOT_SAMPLED = f"00-{TRACE}-{CALLER}-00"

Start = Callable[..., AbstractContextManager[ProxyProcess]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server


@pytest.fixture
def start(
    imds: EmulatorServer, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[ProxyProcess]]:
    """Start a proxy that exports traces to the collector, with settings of a test's own."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")

    def started(**settings: object) -> AbstractContextManager[ProxyProcess]:
        chosen: dict[str, Any] = {"upstream": imds.url, "traces": "true", "budget_requests": 1000, **settings}
        return running_proxy(tmp_path, **chosen)

    return started


def traced(port: int, target: str, traceparent: str = PARENT, **fields: str) -> None:
    assert get(port, target, {**METADATA, "traceparent": traceparent, **fields}).status == 200


def test_miss_has_a_span_and_its_attempt_is_a_child(start: Start, collector: Collector, imds: EmulatorServer) -> None:
    with start() as proxy:
        traced(proxy.port, INSTANCE, tracestate="vendor=1")
        (request,) = collector.wait_for(1, imdsproxy_outcome="miss")
        (attempt,) = [span for span in collector.wait_for(1) if span.parent_id == request.span_id]
    assert (request.name, request.kind, request.failed) == ("GET instance", "server", False)
    assert (request.trace_id, request.parent_id, request.state) == (TRACE, CALLER, "vendor=1")
    assert request.resource["service.name"] == "imdsproxy"
    port = request.attributes.pop("client.port")
    assert port > 0
    ttl = request.attributes.pop("imdsproxy.ttl")
    assert 0 < ttl <= 60
    assert request.attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/metadata/instance",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "imdsproxy.outcome": "miss",
        "imdsproxy.endpoint": "instance",
    }
    assert (attempt.name, attempt.kind, attempt.failed, attempt.trace_id) == ("GET instance", "client", False, TRACE)
    assert attempt.attributes.pop("imdsproxy.wait") >= 0
    assert attempt.attributes == {
        "http.request.method": "GET",
        "url.full": f"{imds.url}/metadata/instance",
        "url.path": "/metadata/instance",
        "server.address": "127.0.0.1",
        "server.port": int(imds.url.rpartition(":")[2]),
        "http.response.status_code": 200,
        "imdsproxy.endpoint": "instance",
        "imdsproxy.budget": "general",
    }
    assert request.start <= attempt.start <= attempt.end <= request.end


@pytest.mark.parametrize("before", [b"", b"\r\n"], ids=["exact", "after an empty line"])
@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "one connection"])
def test_every_way_of_a_hit_continues_the_trace(start: Start, collector: Collector, kept: bool, before: bytes) -> None:
    def head(number: int, connection: str) -> bytes:
        fields = f"Host: localhost\r\nTraceparent: 00-{number:032x}-{CALLER}-01\r\nConnection: {connection}\r\n"
        return before + f"GET {INSTANCE} HTTP/1.1\r\n{fields}\r\n".encode()

    with start() as proxy:
        traced(proxy.port, INSTANCE)
        # A head that is new, one seen once, and known heads.
        if kept:
            with socket.create_connection(("127.0.0.1", proxy.port)) as client, client.makefile("rb") as stream:
                for number in range(1, 6):
                    client.sendall(head(number, "keep-alive"))
                    answer = read_head(stream)
                    stream.read(int(answer.lower().partition(b"content-length: ")[2].split()[0]))
        else:
            for number in range(1, 6):
                assert talk(proxy.port, head(number, "close")).startswith(b"HTTP/1.1 200")
        hits = collector.wait_for(5, imdsproxy_outcome="hit")
    assert sorted(int(span.trace_id, 16) for span in hits) == [1, 2, 3, 4, 5]
    assert {(span.parent_id, span.kind, span.name) for span in hits} == {(CALLER, "server", "GET instance")}
    assert {span.attributes["url.path"] for span in hits} == {"/metadata/instance"}


def test_clients_that_join_a_fetch_are_linked_to_the_one_that_started_it(
    start: Start, collector: Collector, fresh_imds: EmulatorServer
) -> None:
    with start(upstream=fresh_imds.url) as proxy:
        fresh_imds.emulator.faults.add(Fault(latency=0.5, path="/metadata/instance"))
        with ThreadPoolExecutor(5) as clients:
            list(clients.map(lambda number: traced(proxy.port, INSTANCE, f"00-{number:032x}-{CALLER}-01"), range(1, 6)))
        (leader,) = collector.wait_for(1, imdsproxy_outcome="miss")
        joined = collector.wait_for(4, imdsproxy_outcome="collapsed")
        (attempt,) = collector.wait_for(1, server_address="127.0.0.1", url_path="/metadata/instance")
    assert [span.links for span in joined] == [[leader.span_id]] * 4
    assert (leader.links, attempt.parent_id) == ([], leader.span_id)


def test_request_that_its_client_does_not_sample_is_not_exported(start: Start, collector: Collector) -> None:
    with start() as proxy:
        target = unused(INSTANCE)
        for _ in range(4):
            traced(proxy.port, target, NOT_SAMPLED)
        traced(proxy.port, target, PARENT)
        (only,) = collector.wait_for(1, imdsproxy_outcome="hit")
    assert only.parent_id == CALLER
    assert collector.having(imdsproxy_outcome="miss") == []
    assert [span.name for span in collector.spans if span.trace_id == TRACE] == ["GET instance"]


def test_request_without_a_trace_context_starts_a_trace(start: Start, collector: Collector) -> None:
    with start() as proxy:
        for value in ("", "00-not-a-trace-01", f"ff-{TRACE}-{CALLER}-01"):
            assert get(proxy.port, unused(INSTANCE), {**METADATA, "traceparent": value}).status == 200
        found = collector.wait_for(3, imdsproxy_outcome="miss")
    assert {span.parent_id for span in found} == {""}
    assert len({span.trace_id for span in found} - {TRACE}) == 3


def test_sampler_of_opentelemetry_decides_about_other_requests(
    start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with start() as proxy:
        for _ in range(3):
            assert get(proxy.port, INSTANCE).status == 200
        traced(proxy.port, INSTANCE)
        collector.wait_for(1, imdsproxy_outcome="hit")
    assert len(collector.spans) == 1


def test_trace_is_continued_at_another_proxy(start: Start, collector: Collector) -> None:
    with start() as behind, start(upstream=behind.url) as proxy:
        traced(proxy.port, TOKEN)
        found = collector.wait_for(4, url_path=TOKEN.partition("?")[0])
    by_id = {span.span_id: span for span in found}
    (last,) = [span for span in found if span.span_id not in {each.parent_id for each in found}]
    way = []
    while last.span_id in by_id:
        way.append(last.kind)
        if last.parent_id == CALLER:
            break
        last = by_id[last.parent_id]
    assert way == ["client", "server", "client", "server"]


def test_span_has_no_query_token_or_field(start: Start, collector: Collector) -> None:
    with start() as proxy:
        target = f"{TOKEN}&client_id=e0000000-0000-4000-8000-00000000c111"
        for _ in range(4):
            token = get(proxy.port, target, {**METADATA, "traceparent": PARENT, "x-secret": "s3cret"})
        (request, *_) = collector.wait_for(3, imdsproxy_outcome="hit")
    assert b"access_token" in token.body
    assert request.name == "GET token"
    text = repr(collector.spans)
    for secret in ("c111", "vault.azure", "api-version", "s3cret", token.body.split(b'"')[3].decode()):
        assert secret not in text, secret


def test_failed_attempts_are_errors_with_the_reason(start: Start, collector: Collector, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with start(upstream=nowhere, retry_max=0, ready=False) as proxy:
        assert get(proxy.port, INSTANCE, {**METADATA, "traceparent": PARENT}).status == 502
        (request,) = collector.wait_for(1, imdsproxy_outcome="error")
        (attempt,) = [span for span in collector.spans if span.parent_id == request.span_id]
    assert (request.failed, request.attributes["error.type"]) == (True, "upstream-unreachable")
    assert (attempt.failed, attempt.attributes["error.type"]) == (True, "upstream-unreachable")
    assert "http.response.status_code" not in attempt.attributes


def test_refused_permit_is_a_span_without_a_request(start: Start, collector: Collector) -> None:
    with start(budget_requests=1, budget_window=60, max_wait=0) as proxy:
        answer = get(proxy.port, INSTANCE, {**METADATA, "traceparent": PARENT})
        assert answer.status == 429
        (wait,) = collector.wait_for(1, error_type="budget")
        (request,) = collector.wait_for(1, imdsproxy_outcome="refused")
    assert (wait.kind, wait.parent_id, wait.name) == ("internal", request.span_id, "wait instance")
    assert request.attributes["imdsproxy.detail"] == "budget"
    assert not request.failed


def test_pages_of_the_proxy_have_no_spans(start: Start, collector: Collector, imds: EmulatorServer) -> None:
    with start() as proxy:
        for page in ("/-/healthy", "/-/metrics", "/-/status.json", "/%2d/healthy", f"{imds.url}/-/healthy"):
            assert get(proxy.port, page).status == 200
        traced(proxy.port, INSTANCE)
        collector.wait_for(1, imdsproxy_outcome="miss")
    assert {span.attributes["url.path"] for span in collector.spans} == {"/metadata/instance", "/metadata/versions"}


def test_client_that_disconnects_ends_its_span(start: Start, collector: Collector, fresh_imds: EmulatorServer) -> None:
    arrivals = Arrivals(fresh_imds, INSTANCE)
    with start(upstream=fresh_imds.url) as proxy:
        fresh_imds.emulator.faults.add(Fault(hang=True, path="/metadata/instance"))
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.sendall(f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\ntraceparent: {PARENT}\r\n\r\n".encode())
            wait_until(arrivals)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it leaves with RST
        (request,) = collector.wait_for(1, error_type="client-gone")
    (attempt,) = [span for span in collector.spans if span.parent_id == request.span_id]
    assert (request.name, request.failed, request.parent_id) == ("GET", False, CALLER)
    assert (attempt.attributes["error.type"], attempt.failed) == ("cancelled", True)


def test_spans_are_exported_before_the_end(start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with start() as proxy:
        traced(proxy.port, INSTANCE)
        assert collector.spans == []
    assert len(collector.having(imdsproxy_outcome="miss")) == 1


def test_collector_that_fails_is_logged_once_with_its_end(start: Start, collector: Collector) -> None:
    collector.status = b"403 Forbidden"
    with start() as proxy:
        for count in range(3):
            traced(proxy.port, INSTANCE)
            wait_until(lambda count=count: collector.refused > count)
        collector.status = b"200 OK"
        traced(proxy.port, INSTANCE)
        wait_for_log(proxy, "exported again")
        log = proxy.log
    assert log.count("traces cannot be exported") == 1
    assert "Forbidden" in log
    assert log.count("traces are exported again") == 1
    assert "Traceback" not in log


def test_absent_collector_delays_neither_answers_nor_the_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    with start() as proxy:
        wait_for_log(proxy, "traces cannot be exported")
        for _ in range(100):
            traced(proxy.port, INSTANCE)
        log = proxy.log
        proxy.signal(signal.SIGTERM)
        assert proxy.process.wait(15) == 0
    assert log.count("warning") == 1
    assert "Connection refused" in log


def test_exporter_uses_no_web_proxy(start: Start, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    with forbidden_port() as port:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        with start() as proxy:
            traced(proxy.port, INSTANCE)
            collector.wait_for(1, imdsproxy_outcome="miss")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER=zipkin cannot be used"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc cannot be used"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "OTEL_EXPORTER_OTLP_ENDPOINT cannot be used"),
    ],
)
def test_variable_that_cannot_be_used_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    assert words in refused_start(traces="true")


ABSENT = """
import sys
sys.modules["opentelemetry"] = None
from imdsproxy.cli.main import main
sys.exit(main([]))
"""


def test_absent_extra_stops_the_start_with_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABSENT],
        env=environment(port=0, traces="true"),
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("imdsproxy: IMDSPROXY_TRACES=true needs OpenTelemetry, and opentelemetry")
    assert "extra otel" in line


OFF = """
import sys
from imdsproxy.app import create_app
create_app()
print(sorted(name for name in sys.modules if name.partition(".")[0] in {"opentelemetry", "google", "requests"}))
"""


@pytest.mark.parametrize(("traces", "imported"), [("false", False), ("true", True)])
def test_opentelemetry_is_imported_only_if_traces_are_exported(traces: str, imported: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFF],
        env=environment(traces=traces),
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert (done.stdout != "[]\n") is imported
