"""A collector's receiver of OTLP over HTTP, on loopback. It reads what arrives with OpenTelemetry's own classes."""

from __future__ import annotations

import gzip
import socket
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.kit import wait_until
from tests.servers import Server, read_head

KINDS = {Span.SPAN_KIND_SERVER: "server", Span.SPAN_KIND_CLIENT: "client", Span.SPAN_KIND_INTERNAL: "internal"}


@dataclass(frozen=True)
class Received:
    """A span as a collector sees it."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[str]
    failed: bool
    resource: dict[str, Any]

    @property
    def outcome(self) -> object:
        return self.attributes.get("imdsproxy.outcome")


class Collector(Server):
    """Answers each export with `status`, and keeps its spans and fields."""

    def __init__(self) -> None:
        super().__init__()
        self.status = b"200 OK"
        self.spans: list[Received] = []
        self.heads: list[bytes] = []
        self.refused = 0

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while head := read_head(stream):
                fields = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (line.partition(b":") for line in head.splitlines()[1:])
                }
                body = stream.read(int(fields[b"content-length"]))
                answer = ExportTraceServiceResponse().SerializeToString()
                status = self.status
                if status == b"200 OK":
                    self._take(gzip.decompress(body) if fields.get(b"content-encoding") == b"gzip" else body)
                    self.heads.append(head)
                else:
                    self.refused += 1
                connection.sendall(
                    b"HTTP/1.1 %b\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\n\r\n%b"
                    % (status, len(answer), answer)
                )

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for group in request.resource_spans:
            resource = _values(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_received(span, resource) for span in scope.spans]

    def wait_for(self, count: int, **attributes: object) -> list[Received]:
        """Wait until this many spans have these attributes (`url.path` is url_path), and return them."""
        wait_until(lambda: len(self.having(**attributes)) >= count)
        return self.having(**attributes)

    def having(self, **attributes: object) -> list[Received]:
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}
        return [span for span in [*self.spans] if wanted.items() <= span.attributes.items()]


def _received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        state=span.trace_state,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        links=[link.span_id.hex() for link in span.links],
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
