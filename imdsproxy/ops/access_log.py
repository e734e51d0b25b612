"""The access log: one line for each answer. `docs/logging.md` explains each field.

A line holds nothing of a query but the api-version, and nothing of a body. Values that a client has written are cut
off, and the formatters of `logs` escape them.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote_to_bytes

from imdsproxy.protocol.tracing import trace_context_of_head
from imdsproxy.records import Client, RequestRecord, description_of

logger = logging.getLogger("imdsproxy.access")

FIELDS = (
    *("client", "method", "path", "api_version", "status", "outcome", "endpoint", "milliseconds", "age"),
    *("upstream_status", "permit_wait_milliseconds", "x_ms_request_id", "x_ms_client_request_id", "traceparent"),
    *("user_agent", "detail"),
)
"""Every field, in the order of a line. A field without a value is left out."""

_LONGEST_PATH = 200
_LONGEST_VERSION = 40
_LONGEST_ID = 64
_LONGEST_AGENT = 80
_API_VERSION = b"api-version"
# Trace Context section 3.2.2. Later versions may append to it.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_LINE = re.compile(rb"\r\n(?=[ux])(user-agent|x-ms-client-request-id):([^\r\n]*)(?=\r\n[^ \t])", re.IGNORECASE)


def log_request(record: RequestRecord, seconds: float, client: Client | None, request: bytes) -> None:
    """Log an answer, with the path of the target as it was on the wire."""
    if not logger.isEnabledFor(logging.INFO):
        return
    found = _of_request(request)
    if request:
        found["endpoint"] = record.endpoint
        found["milliseconds"] = round(seconds * 1000, 3)
    identifier = record.response.header(b"x-ms-request-id")
    found |= {
        "client": description_of(client),
        "status": record.response.status,
        "outcome": record.outcome.value,
        "age": record.age,
        "upstream_status": record.upstream,
        "permit_wait_milliseconds": None if record.waited is None else round(record.waited * 1000, 3),
        "x_ms_request_id": None if identifier is None else _text(identifier, _LONGEST_ID),
        "detail": record.detail,
    }
    # An empty path is a path.
    fields = {name: value for name in FIELDS if (value := found.get(name)) is not None}
    logger.info("request", extra={"fields": fields})


def _of_request(request: bytes) -> dict[str, object]:
    """Return what the client has written; nothing for bytes that were not a request."""
    if not request:
        return {}
    method, target = request.partition(b"\r\n")[0].split(b" ", 2)[:2]
    path, _, query = target.partition(b"?")
    found: dict[str, object] = {
        "method": method.decode("utf-8", "backslashreplace"),
        "path": path[:_LONGEST_PATH].decode("ascii", "backslashreplace")[:_LONGEST_PATH],
        "api_version": _api_version(query),
    }
    for name, value in reversed(_LINE.findall(request)):  # the first of two wins
        if name.lower() == b"user-agent":
            found["user_agent"] = _text(value, _LONGEST_AGENT)
        else:
            found["x_ms_client_request_id"] = _text(value, _LONGEST_ID)
    parent = _TRACEPARENT.match(trace_context_of_head(request).get("traceparent", ""))
    if parent is not None:
        found["traceparent"] = parent[0]
    return found


def _api_version(query: bytes) -> str | None:
    for parameter in query.split(b"&"):
        name, _, value = parameter.partition(b"=")
        if unquote_to_bytes(name).lower() == _API_VERSION:
            return _text(unquote_to_bytes(value[: 3 * _LONGEST_VERSION]), _LONGEST_VERSION)
    return None


def _text(value: bytes, longest: int) -> str | None:
    """Return a value without the space around it, shortened; None if it is empty."""
    return value.strip(b" \t")[:longest].decode("latin-1") or None
