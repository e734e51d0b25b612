"""Which header fields go to IMDS, and which of IMDS's go to the client."""

from __future__ import annotations

import re
from email.utils import formatdate

from imdsproxy import __version__
from imdsproxy.policy.decisions import Cache, Forward
from imdsproxy.protocol.messages import Headers, Request, Response
from imdsproxy.protocol.request_parser import HOP_HEADER
from imdsproxy.protocol.tracing import TRACING_FIELDS

# RFC 9110 section 7.6.1: these fields are for one connection only.
_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
    }
)
# Fields that the proxy sets itself, and fields that reveal a proxy (IMDS refuses such requests).
_OURS = frozenset(
    {
        *(b"host", b"content-length", b"expect", b"metadata", HOP_HEADER),
        *(b"forwarded", b"via", b"x-real-ip"),
        # Some servers let these override the request's target and method, which the policy has checked.
        *(b"x-original-url", b"x-rewrite-url", b"x-http-method", b"x-http-method-override", b"x-method-override"),
    }
)
_FORWARDED = b"x-forwarded"
# RFC 9110 section 5.5, as strictly as the client to IMDS reads it. Other values are not forwarded.
_FIELD_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_METADATA = (b"metadata", b"true")
_NO_CACHE = (b"cache-control", b"no-cache")
# Fields that change no answer of IMDS: the client's name, what it accepts, and names for tracing.
_WITHOUT_CONSEQUENCE = frozenset(
    {
        *(b"accept", b"accept-encoding", b"accept-language", b"user-agent"),
        *TRACING_FIELDS,
        b"x-ms-return-client-request-id",
        *(b"x-client-sku", b"x-client-ver", b"x-client-os", b"x-client-cpu"),
    }
)
_OWN = (
    (b"accept", b"*/*"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"imdsproxy/" + __version__.encode("ascii")),
)


def to_upstream(
    request: Request, decision: Forward | Cache, instance: str, *, shared: bool = False, proxied: bool = False
) -> Headers:
    """Return the fields to send to IMDS, without Host and Content-Length.

    A shared fetch carries no field of the client that happened to start it. A request forwarded for one client carries
    that client's end-to-end fields. A client's no-cache is sent to another proxy only.

    Args:
        request: The client's request.
        decision: The policy's decision about it.
        instance: The name of this proxy, by which it recognises its own requests.
        shared: Whether the request is `shareable`, and its answer serves all clients that wait for it.
        proxied: Whether the upstream is another imdsproxy.
    """
    hops = (HOP_HEADER, ", ".join((*request.hops, instance)).encode("latin-1"))
    if isinstance(decision, Cache):
        return (*_OWN, _METADATA, *((_NO_CACHE,) if proxied and request.no_cache else ()), hops)
    kept = _OWN if shared else _passed_on(request)
    return (*kept, _METADATA, hops) if decision.add_metadata else (*kept, hops)


def shareable(request: Request) -> bool:
    """Return whether one answer can serve all clients that send this request at the same time, without being stored.

    It is a GET, and nothing of the client that is sent to IMDS can change the answer: no body, no `bypass_cache` or
    `no-cache`, and only fields that are known to change no answer.
    """
    if request.method != "GET" or request.body or request.no_cache or request.target.bypass:
        return False
    return all(name in _WITHOUT_CONSEQUENCE for name, _ in _passed_on(request))


def _passed_on(request: Request) -> Headers:
    """Return the client's own fields that go on to IMDS."""
    return tuple(
        (name, value.strip(b" \t"))
        for name, value in _end_to_end(request.headers)
        if not _is_ours(name) and _FIELD_VALUE.fullmatch(value.strip(b" \t"))
    )


def to_client(headers: list[tuple[bytes, bytes]]) -> Headers:
    """Return the fields of IMDS's answer for the client, with names in lower case, without Content-Length."""
    fields = [(name.lower(), value) for name, value in headers]
    return tuple(field for field in _end_to_end(fields) if field[0] != b"content-length")


def dated(response: Response, wall: float) -> Response:
    """Return a response that has a `Date`, the time of its receipt if the sender gave none (RFC 9110 section 6.6.1).

    `wall` is in seconds since 1970.
    """
    if response.header(b"date") is not None:
        return response
    date = (b"date", formatdate(wall, usegmt=True).encode("ascii"))
    return Response(response.status, (*response.headers, date), response.body)


def _is_ours(name: bytes) -> bool:
    """Return whether a field is one of the proxy's own. `_` counts as `-`, because some servers read it so."""
    plain = name.replace(b"_", b"-")
    return plain in _OURS or plain.startswith(_FORWARDED)


def _end_to_end(headers: Headers | list[tuple[bytes, bytes]]) -> Headers:
    named = {option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")}
    return tuple(field for field in headers if field[0] not in _HOP_BY_HOP and field[0] not in named)
