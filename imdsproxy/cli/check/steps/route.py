"""The route to IMDS, as the routing table has it."""

from __future__ import annotations

import ipaddress

from imdsproxy.cli.check.facts import Facts, Reach, Route
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning

_LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
_NOT_THIS_WAY = {
    Reach.NO_ROUTE: ("route-missing", "no route leads to {}"),
    Reach.BLOCKED: ("route-blocked", "the routing table blocks {} (a blackhole, prohibit or unreachable route)"),
    Reach.LOCAL: ("route-local", "{} is an address of this machine, so calls never leave it"),
}


def judge_route(facts: Facts) -> Finding:
    """Check that calls of IMDS leave by the network interface that the rest of Azure is reached by.

    IMDS answers only the primary address of the VM's primary network interface (Microsoft's IMDS page).
    """
    routes = facts.routes
    if not routes.target:
        return ok(f"the upstream is {facts.config.upstream}, which needs no route")
    way = routes.to_imds
    if way.reach is Reach.UNKNOWN:
        return skipped("route-unknown", f"the routing table cannot be read: {way.why}", _look(facts, routes.target))
    if way.reach is not Reach.ROUTED:
        code, found = _NOT_THIS_WAY[way.reach]
        return failure(code, found.format(routes.target), _repair(facts, way.reach))
    by = f"{routes.target} is reached by {_described(way)}"
    if way.source and ipaddress.ip_address(way.source) in _LINK_LOCAL:
        return failure(
            "route-link-local",
            f"{by}; IMDS does not answer that link-local address, as of a failover cluster's adapter",
            _repair(facts, Reach.NO_ROUTE),
        )
    other = routes.to_azure
    if other.reach is Reach.ROUTED and other.interface != way.interface:
        return warning(
            "route-interface",
            f"{by}, but the rest of Azure by {_described(other)}",
            f"check that {way.interface} is the VM's primary network interface; {_repair(facts, Reach.NO_ROUTE)}",
        )
    if way.dhcp is False:
        return warning(
            "route-static-address",
            f"{by}; that address is set by hand",
            "IMDS needs the primary address of the primary network interface, and DHCP: turn DHCP on for it",
        )
    return ok(by)


def _described(way: Route) -> str:
    source = f", source {way.source}" if way.source else ""
    gateway = f"gateway {way.gateway}" if way.gateway else "on the link"
    dhcp = ", by DHCP" if way.dhcp else ""
    return f"interface {way.interface} ({gateway}{source}{dhcp})"


def _look(facts: Facts, target: str) -> str:
    if facts.system == "windows":
        return f"look with: route print {target}"
    return f"look with: ip route get {target}"


def _repair(facts: Facts, reach: Reach) -> str:
    """Return how to make the route, with the addresses of this machine where they are known."""
    target, way = facts.routes.target, facts.routes.to_azure
    if facts.system == "windows":
        interface = way.source or "ADDRESS-OF-THE-PRIMARY-NIC"
        return f"as administrator: route add {target}/32 {interface} metric 1 -p"
    if reach is Reach.LOCAL:
        return f"remove it from its interface: ip addr show to {target}"
    if reach is Reach.BLOCKED:
        return 'remove that route: "ip route show table all" and "ip rule" show where it is'
    device = way.interface or "INTERFACE-OF-THE-PRIMARY-NIC"
    via = f"via {way.gateway} " if way.gateway else ""
    return f"ip route add {target}/32 {via}dev {device}; DHCP normally brings this route, so renew its lease as well"
