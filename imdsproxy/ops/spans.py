"""What a span says of a request or an upstream attempt, by OpenTelemetry's semantic conventions for HTTP.

A span has the path of a target and never its query, because a query can identify a managed identity. It has no field
and no body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote

from imdsproxy.protocol.address import Address
from imdsproxy.records import Client, KnownClient, RequestRecord, UpstreamAttempt

Attributes = Mapping[str, str | int | float]

# The methods that the conventions know. Any other is `_OTHER`, so that their number is bounded.
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"},
)
_LONGEST_PATH = 200
_LONGEST_METHOD = 20


@dataclass(frozen=True, slots=True)
class SpanEnd:
    """What is known at the end of a span."""

    name: str
    attributes: Attributes
    failed: bool = False
    """Whether the span's status is Error."""


GONE = SpanEnd("", {"error.type": "client-gone"})
"""The end of a request whose client disconnected before its answer. The name stays."""
CANCELLED = SpanEnd("", {"error.type": "cancelled"}, failed=True)
"""The end of an upstream attempt that was cancelled, because others waited for its permit or no client was left."""


def request_start(head: bytes) -> tuple[str, Attributes]:
    """Return the name and attributes of a request's span, as far as its first line has them.

    Args:
        head: The request from its first byte, at least to the end of its target.
    """
    method, target = head.split(b" ", 2)[:2]
    name, attributes = _method(method)
    path = _path(target)
    return name, {**attributes, "url.scheme": "http", **({"url.path": path} if path else {})}


def request_end(record: RequestRecord, client: Client | None, name: str) -> SpanEnd:
    """Return what the record of an answer adds to its span.

    Args:
        record: What happened.
        client: The client; None if it is not known.
        name: The name that `request_start` returned.
    """
    status = record.response.status
    attributes: dict[str, str | int | float] = {
        "http.response.status_code": status,
        "imdsproxy.outcome": record.outcome.value,
        "imdsproxy.endpoint": record.endpoint,
    }
    if isinstance(client, KnownClient):
        attributes["imdsproxy.client"] = client.description
    if client is not None and client[0]:
        attributes["client.address" if _is_address(client[0]) else "imdsproxy.client"] = client[0]
        if client[1]:
            attributes["client.port"] = client[1]
    optional = {"detail": record.detail, "age": record.age, "ttl": record.ttl}
    attributes.update({f"imdsproxy.{key}": value for key, value in optional.items() if value is not None})
    failed = status >= 500
    if failed:
        attributes["error.type"] = record.detail or str(status)
    return SpanEnd(_named(name, record.endpoint), attributes, failed)


def attempt_start(method: str, target: bytes, upstream: Address) -> tuple[str, Attributes]:
    """Return the name and attributes of an upstream attempt's span when it is sent.

    Args:
        method: The method.
        target: The target as it is sent.
        upstream: Where it is sent.
    """
    name, attributes = _method(method.encode("ascii", "replace"))
    path = _path(target)
    if upstream.unix is not None:
        where: Attributes = {"network.transport": "unix", "server.address": upstream.unix}
    else:
        where = {"server.address": upstream.host, "server.port": upstream.port}
    return name, {**attributes, "url.full": f"http://{upstream.authority}{path}", "url.path": path, **where}


def attempt_end(attempt: UpstreamAttempt, name: str) -> SpanEnd:
    """Return what the record of an upstream attempt adds to its span.

    An attempt that was not sent, because no permit would be free in time, has the error `budget`.

    Args:
        attempt: What happened.
        name: The name that `attempt_start` returned.
    """
    status = attempt.status or "budget"
    attributes: dict[str, str | int | float] = {
        "imdsproxy.endpoint": attempt.endpoint,
        "imdsproxy.budget": attempt.budget.value,
        "imdsproxy.wait": attempt.waited,
    }
    if attempt.retried_after is not None:
        attributes["imdsproxy.retried_after"] = attempt.retried_after
    failed = not status.isdecimal() or int(status) >= 400
    if status.isdecimal():
        attributes["http.response.status_code"] = int(status)
    if failed:
        attributes["error.type"] = status
    return SpanEnd(_named(name, attempt.endpoint), attributes, failed)


def is_page(target: bytes) -> bool:
    """Return whether a target is a page of the proxy's own, under `/-/`."""
    return f"{unquote(_path(target))}/".startswith("/-/")


def _method(written: bytes) -> tuple[str, Attributes]:
    method = written.decode("ascii", "backslashreplace")
    if method in _METHODS:
        return method, {"http.request.method": method}
    return "HTTP", {"http.request.method": "_OTHER", "http.request.method_original": method[:_LONGEST_METHOD]}


def _path(target: bytes) -> str:
    """Return the path of a target in origin or absolute form, or the empty text if it has none."""
    before_query = target.partition(b"?")[0].partition(b"#")[0]
    if not before_query.startswith(b"/"):
        rest = before_query.partition(b"://")[2]
        before_query = b"".join(rest.partition(b"/")[1:])
    return before_query[:_LONGEST_PATH].decode("ascii", "backslashreplace")[:_LONGEST_PATH]


def _is_address(name: str) -> bool:
    """Return whether a client's name is an address. If users are known, a name says whose process the client is."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _named(name: str, endpoint: str) -> str:
    return name if endpoint == "none" else f"{name} {endpoint}"
