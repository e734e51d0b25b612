"""The one normaliser: what a client sent becomes a `Request`, or the `Refusal` to answer with.

The rules stand before everything else, so that a request that breaks one costs nothing and reaches nobody.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from imdsproxy.protocol.messages import IMDS_HOST, Refusal, Request, Target
from imdsproxy.protocol.target import AUTHORITY, read_target

HOP_HEADER = b"imdsproxy-via"
"""Carries the names of the instances a request has passed, so that a proxy knows itself again."""

_POSTS = frozenset({("metadata", "scheduledevents"), ("metadata", "identity", "issuecredential")})
_INSTANCE = re.compile(rb"[0-9a-f]{16}")
# A circle is recognised by the name that comes round, so forgetting the oldest of many hides none in practice.
_MOST_HOPS = 16
_LONGEST_HOST = 512
# HTTP/1.0, as servers write it; those of HTTP/2 pass `:authority` on as Host.
_WITHOUT_HOST = frozenset({"1.0", "1"})
_READ = frozenset({b"host", b"metadata", b"cache-control", HOP_HEADER, b"x-forwarded-for"})


@dataclass(frozen=True, slots=True)
class AcceptedHosts:
    """Under which names the proxy may be called.

    `names` are host names accepted in `Host` (an IP literal always is, so that a DNS name that was rebound
    to this address never is); `authorities` are the `host:port` accepted in an absolute-form target;
    `instance` is the proxy's own name among the hops.
    """

    names: frozenset[str] = frozenset({"localhost"})
    authorities: frozenset[str] = frozenset({f"{IMDS_HOST}:80"})
    instance: str = ""


def read(
    method: str,
    raw: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    accepted_hosts: AcceptedHosts,
    http_version: str = "1.1",
) -> Request | Refusal:
    """Read a request: method, target as on the wire, headers with names in lower case. The body is not looked at."""
    target = read_target(raw)
    page = isinstance(target, Target) and target.segments[:1] == ("-",)
    if method not in {"GET", "POST"} and not (method == "HEAD" and page):
        return _method_refused(method, target)
    if isinstance(target, Refusal):
        return target
    if method == "POST" and target.segments not in _POSTS:
        return _method_refused(method, target)
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _READ:
            fields.setdefault(name, []).append(value)
    refusal = _check_host(fields.get(b"host", []), target, accepted_hosts, http_version)
    if refusal is None and b"x-forwarded-for" in fields:
        refusal = _forwarded()
    passed = _hops(fields[HOP_HEADER]) if HOP_HEADER in fields else ()
    if refusal is None and accepted_hosts.instance in passed:
        refusal = _loop()
    if refusal is not None:
        return refusal
    metadata = fields.get(b"metadata", ())
    return Request(
        method,
        target,
        metadata=len(metadata) == 1 and metadata[0].strip().lower() == b"true",
        no_cache=b"cache-control" in fields and any(map(_is_no_cache, fields[b"cache-control"])),
        headers=tuple(headers),
        hops=passed,
    )


def _check_host(hosts: list[bytes], target: Target, accepted_hosts: AcceptedHosts, http_version: str) -> Refusal | None:
    if len(hosts) != 1 and (hosts or http_version not in _WITHOUT_HOST):  # RFC 9112 section 3.2
        return _bad("bad-host", "Host must be given exactly once.")
    if target.authority is not None:  # it stands above Host: RFC 9112 section 3.2.2
        return None if target.authority in accepted_hosts.authorities else _other_host(target.authority)
    name = "" if not hosts else _host_name(hosts[0]) if len(hosts[0]) <= _LONGEST_HOST else None
    if name is None:
        return _bad("bad-host", "Host cannot be read; send an address or an allowed name, with or without a port.")
    return None if name == "" or name in accepted_hosts.names else _other_name(name)


def _other_host(authority: str) -> Refusal:
    return _forbidden(
        "other-host", f"This proxy forwards to the Azure metadata service alone, not to {authority[:100]}."
    )


def _other_name(name: str) -> Refusal:
    return _forbidden(
        "host",
        f"{name[:100]!a} is not a name this proxy answers to. Call it by address or as localhost, "
        "or add the name to IMDSPROXY_ALLOWED_HOSTS.",
    )


@lru_cache(maxsize=256)
def _host_name(host: bytes) -> str | None:
    """Give the name in a Host field, `""` for an IP literal, None for what cannot be read (RFC 9110 section 7.2)."""
    match = AUTHORITY.fullmatch(host.strip().decode("latin-1").lower())
    if match is None:
        return None
    name = match["name"]
    try:
        if not name.startswith("["):
            ipaddress.IPv4Address(name)
            return ""
    except ValueError:
        return name
    try:
        address = ipaddress.IPv6Address(name[1:-1])
    except ValueError:
        return None
    # A zone belongs to one machine and is never part of a Host (RFC 6874 section 4).
    return None if address.scope_id else ""


def _loop() -> Refusal:
    return Refusal(
        508,
        "loop",
        "loop_detected",
        "This request has passed through this proxy before: its upstream leads back to itself. Set "
        "IMDSPROXY_UPSTREAM to IMDS, and exempt the proxy's own user from the redirect to it.",
    )


def _hops(values: list[bytes]) -> tuple[str, ...]:
    """Give the instances that were passed, the latest last; what is no instance's name is not sent on."""
    hops = (hop.strip() for value in values for hop in value.split(b","))
    return tuple(hop.decode("ascii") for hop in hops if _INSTANCE.fullmatch(hop))[-_MOST_HOPS:]


def _is_no_cache(value: bytes) -> bool:
    return any(directive.strip().lower() == b"no-cache" for directive in value.split(b","))


def _method_refused(method: str, target: Target | Refusal) -> Refusal:
    segments = target.segments if isinstance(target, Target) else ()
    allowed = "GET, POST" if segments in _POSTS else "GET, HEAD" if segments[:1] == ("-",) else "GET"
    return Refusal(
        405,
        "method",
        "method_not_allowed",
        f"{method[:20]!a} is not supported here; use {allowed.replace(', ', ' or ')}.",
        ((b"allow", allowed.encode("ascii")),),
    )


def _forwarded() -> Refusal:
    return _bad(
        "x-forwarded-for",
        "X-Forwarded-For is not accepted: IMDS refuses what came through a web proxy. "
        "Call the metadata address directly (for example with NO_PROXY=169.254.169.254).",
    )


def _bad(reason: str, description: str) -> Refusal:
    return Refusal(400, reason, "invalid_request", description)


def _forbidden(reason: str, description: str) -> Refusal:
    return Refusal(403, reason, "forbidden", description)
