"""Turn what a client sent into a `Request`, or into the `Refusal` to answer with.

These rules come before all others. A request that breaks one takes no permit and reaches no other part of the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from imdsproxy.protocol.accepted_hosts import AcceptedHosts, check_host
from imdsproxy.protocol.host import read_host, size_of_host
from imdsproxy.protocol.memory import Remembered
from imdsproxy.protocol.messages import Refusal, Request, Target
from imdsproxy.protocol.target import read_target, size_of_reading

HOP_HEADER = b"imdsproxy-via"
"""The field with the names of the instances that a request has passed. A proxy finds a loop by its own name there."""

_POSTS = frozenset({("metadata", "scheduledevents"), ("metadata", "identity", "issuecredential")})
_PURGE = ("-", "purge")
# A loop repeats its names, so it is found even if the oldest of many names is dropped.
_MOST_HOPS = 16
_HOP = re.compile(rb"(?:^|,)[ \t]*([0-9a-f]{16})[ \t]*(?=,|$)")
_NO_CACHE = re.compile(rb"(?i)(?:^|,)[ \t]*no-cache[ \t]*(?:,|$)")
_LENGTH = b"content-length"
_CODING = b"transfer-encoding"
_ORIGIN = b"origin"
_FETCH_SITE = b"sec-fetch-site"
_READ = frozenset(
    {
        *(b"host", b"metadata", b"cache-control", HOP_HEADER, b"x-forwarded-for"),
        *(_ORIGIN, _FETCH_SITE, _LENGTH, _CODING),
    }
)
# Longer targets are read again each time.
_LONGEST_REMEMBERED = 1024
_HOST_SHARE = 4


class Readings:
    """Readings of targets and Host fields, remembered in at most `max_bytes`."""

    def __init__(self, max_bytes: int = 0) -> None:
        for_hosts = max_bytes // _HOST_SHARE
        self.target = Remembered(read_target, size_of_reading, max_bytes - for_hosts)
        self.host = Remembered(read_host, size_of_host, for_hosts)

    @property
    def bytes(self) -> int:
        """The bytes of all remembered readings."""
        return self.target.bytes + self.host.bytes


NOTHING_REMEMBERED = Readings()


def read(  # noqa: PLR0913  # the parts of a request, and what it is read with
    method: str,
    raw: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    accepted_hosts: AcceptedHosts,
    http_version: str = "1.1",
    *,
    readings: Readings = NOTHING_REMEMBERED,
) -> Request | Refusal:
    """Read a request without its body.

    Args:
        method: The method, in the client's case.
        raw: The target as it was on the wire.
        headers: The fields, with names in lower case.
        accepted_hosts: The names of the proxy at this listener.
        http_version: `1.1`, `1.0` or as the server writes it.
        readings: The memory of earlier readings.
    """
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _READ:
            fields.setdefault(name, []).append(value)
    if (_ORIGIN in fields or _FETCH_SITE in fields) and _is_page(fields):
        return _page()
    if _CODING in fields and not _is_plainly_chunked(fields):
        return _doubtful_length()
    target = _check_method(method, readings.target(raw) if len(raw) <= _LONGEST_REMEMBERED else read_target(raw))
    if isinstance(target, Refusal):
        return target
    host = check_host(fields.get(b"host", []), target, accepted_hosts, http_version, readings.host)
    if isinstance(host, Refusal):
        return host
    hops = _hops(fields[HOP_HEADER]) if HOP_HEADER in fields else ()
    if b"x-forwarded-for" in fields or accepted_hosts.instance in hops:
        return _forwarded() if b"x-forwarded-for" in fields else _loop()
    metadata = fields.get(b"metadata", ())
    is_true = len(metadata) == 1 and metadata[0].strip().lower() == b"true"
    return Request(
        method,
        target,
        metadata=is_true,
        wrong_metadata=bool(metadata) and not is_true,
        to_imds=host.imds,
        no_cache=b"cache-control" in fields and any(map(_NO_CACHE.search, fields[b"cache-control"])),
        headers=tuple(headers),
        hops=hops,
    )


def _is_page(fields: dict[bytes, list[bytes]]) -> bool:
    """Return whether a web page sent the request.

    A page cannot add `Metadata`, but would not need to where the proxy adds it. Browsers send `Origin` with every
    request whose method or mode is not harmless (Fetch, "append a request Origin header"). They send
    `Sec-Fetch-Site: none` only for a request of the user that no page has made (Fetch Metadata, section 2.3).
    """
    return _ORIGIN in fields or any(site.strip().lower() != b"none" for site in fields[_FETCH_SITE])


def _check_method(method: str, target: Target | Refusal) -> Target | Refusal:
    """Return the target if it accepts the method. HEAD is for the proxy's own pages, which a purge is not."""
    if isinstance(target, Refusal):
        return target if method in {"GET", "POST"} else _method_refused(method, ("GET",))
    segments = target.segments
    other = "POST" if segments in _POSTS else "HEAD" if segments[:1] == ("-",) else "GET"
    methods = ("POST",) if segments == _PURGE else ("GET", other)
    return target if method in methods else _method_refused(method, methods)


def _loop() -> Refusal:
    return Refusal(
        508,
        "loop",
        "loop_detected",
        "This request has passed through this proxy before: its upstream leads back to itself. Set "
        "IMDSPROXY_UPSTREAM to IMDS, and exempt the proxy's own user from the redirect to it.",
    )


def _hops(values: list[bytes]) -> tuple[str, ...]:
    """Return the names of the instances that were passed, the latest last. Anything else in the field is ignored."""
    return tuple(hop.decode("ascii") for hop in _HOP.findall(b",".join(values))[-_MOST_HOPS:])


def _method_refused(method: str, methods: tuple[str, ...]) -> Refusal:
    allowed = ", ".join(dict.fromkeys(methods))
    return Refusal(
        405,
        "method",
        "method_not_allowed",
        f"{method[:20]!a} is not supported here; use {allowed.replace(', ', ' or ')}.",
        ((b"allow", allowed.encode("ascii")),),
    )


def _forwarded() -> Refusal:
    return Refusal(
        400,
        "x-forwarded-for",
        "invalid_request",
        "X-Forwarded-For is not accepted, because IMDS refuses requests that came through a web proxy. "
        "Send requests for metadata directly (for example with NO_PROXY=169.254.169.254).",
    )


def _is_plainly_chunked(fields: dict[bytes, list[bytes]]) -> bool:
    """Return whether chunks alone say where the body ends.

    `imdsproxy serve` refuses all else before (RFC 9112 section 6.1). Another server may read a body that has a length
    too by its chunks, or leave another coding in the body, and pass the fields on.
    """
    return _LENGTH not in fields and [value.strip().lower() for value in fields[_CODING]] == [b"chunked"]


def _doubtful_length() -> Refusal:
    description = "Transfer-Encoding came with Content-Length, or is not chunked alone; send Content-Length."
    return Refusal(400, "malformed", "invalid_request", description, ((b"connection", b"close"),))


def _page() -> Refusal:
    return Refusal(
        403,
        "browser",
        "forbidden",
        "A web page sent this request (Origin, or Sec-Fetch-Site other than none), and web pages are not served. "
        "Open the address directly, or use a program such as curl.",
    )
