"""The hosts by which the proxy may be called, in `Host` and in an absolute-form target. Any other is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imdsproxy.protocol.host import HostField, is_placeholder, may_be_address, read_host
from imdsproxy.protocol.messages import IMDS_HOST, Refusal, Target

_LONGEST_HOST = 512
# HTTP/1.0, as servers write it. Servers of HTTP/2 pass `:authority` on as Host.
_WITHOUT_HOST = frozenset({"1.0", "1"})
_NO_HOST = HostField("", imds=True)


@dataclass(frozen=True, slots=True)
class AcceptedHosts:
    """The names by which the proxy may be called at one listener."""

    names: frozenset[str] = frozenset({"localhost"})
    """Host names accepted in `Host`. An IP literal is always accepted, because DNS rebinding needs a name."""
    authorities: frozenset[str] = frozenset({f"{IMDS_HOST}:80"})
    """Each `host:port` accepted in an absolute-form target."""
    instance: str = ""
    """The proxy's own name among the hops."""
    any_name: bool = False
    """Accept every host name, as at a Unix socket, because no DNS name leads to one.

    In an absolute-form target only a single label is accepted, because a name with a dot belongs to another host.
    """


def check_host(
    hosts: list[bytes],
    target: Target,
    accepted_hosts: AcceptedHosts,
    http_version: str,
    read: Callable[[bytes], HostField | None] = read_host,
) -> HostField | Refusal:
    """Return the host that the request is addressed to, or a refusal if it is not accepted.

    A request without Host (HTTP/1.0) may have been sent to IMDS and redirected here, so it counts as addressed to IMDS.

    Args:
        hosts: The values of all Host fields.
        target: The target, which can have an authority of its own.
        accepted_hosts: The names of the proxy at this listener.
        http_version: `1.1`, `1.0` or as the server writes it.
        read: Reads a Host field, perhaps from a memory.
    """
    if len(hosts) != 1 and (hosts or http_version not in _WITHOUT_HOST):  # RFC 9112 section 3.2
        return _bad_host("Host must be given exactly once.")
    if target.authority is not None:  # it overrides Host: RFC 9112 section 3.2.2
        return _check_authority(target.authority, accepted_hosts)
    host = _NO_HOST if not hosts else read(hosts[0]) if len(hosts[0]) <= _LONGEST_HOST else None
    if host is None:
        return _bad_host("Host cannot be read; send an address or an allowed name, with or without a port.")
    name = host.name
    if name == "" or name in accepted_hosts.names or (accepted_hosts.any_name and not may_be_address(name)):
        return host
    return _forbidden(
        "host",
        f"{name[:100]!a} is not a host name of this proxy. Use its IP address or localhost, "
        "or add the name to IMDSPROXY_ALLOWED_HOSTS.",
    )


def _check_authority(authority: str, accepted_hosts: AcceptedHosts) -> HostField | Refusal:
    if authority in accepted_hosts.authorities:
        return HostField("", imds=authority.startswith(f"{IMDS_HOST}:"))
    if accepted_hosts.any_name and is_placeholder(authority):
        return HostField(authority)
    return _forbidden(
        "other-host", f"This proxy forwards only to the Azure metadata service, not to {authority[:100]}."
    )


def _bad_host(description: str) -> Refusal:
    return Refusal(400, "bad-host", "invalid_request", description)


def _forbidden(reason: str, description: str) -> Refusal:
    return Refusal(403, reason, "forbidden", description)
