"""The nftables ruleset that brings calls of IMDS's address to the proxy, as text.

One table of our own, `ip imdsproxy`, is all that is ever written or removed. The ruleset first declares that table
and deletes it, so loading it twice is loading it once, and nft carries a file out whole or not at all (nft(8)).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

TABLE = "ip imdsproxy"

_IMDS = "ip daddr 169.254.169.254 tcp dport 80"
_ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet=1"


@dataclass(frozen=True, slots=True)
class Redirect:
    """What is redirected, and where to."""

    user: str
    """The proxy's own user, a number or a name: the one whose calls go to IMDS itself."""
    host: str
    """The IPv4 address of this machine at which the proxy is reached."""
    port: int
    node: bool = False
    """Whether calls that this machine forwards, those of its pods, are redirected too."""

    @property
    def needs_route_localnet(self) -> bool:
        """Whether the kernel must be told to take forwarded packets to loopback, which it otherwise drops."""
        return self.node and ipaddress.IPv4Address(self.host).is_loopback


def rules(redirect: Redirect) -> str:
    """Give the ruleset, to be read by `nft -f`."""
    goal = f"{redirect.host}:{redirect.port}"
    chains = [_output(redirect.user, goal)]
    if redirect.node:
        chains.append(_prerouting(goal))
    if redirect.needs_route_localnet:
        chains.append(_GUARD)
    about = f"# Calls of IMDS, 169.254.169.254:80, go to imdsproxy at {goal}, except those of its own user.\n"
    if redirect.needs_route_localnet:
        about += f"# Pods need this kernel setting as well: sysctl -w {_ROUTE_LOCALNET}\n"
    body = "\n".join(chains)
    return f"#!/usr/sbin/nft -f\n{about}\ntable {TABLE}\ndelete table {TABLE}\n\ntable {TABLE} {{\n{body}}}\n"


def removal() -> str:
    """Give the ruleset that takes the other away, and nothing else; harmless where there is none."""
    return f"#!/usr/sbin/nft -f\n# Calls of IMDS go to IMDS again.\n\ntable {TABLE}\ndelete table {TABLE}\n"


def missing_exemption(user: int) -> str:
    """Say which rule is missing where the proxy, run by this user, met itself through a redirect."""
    return (
        f"the redirect of 169.254.169.254:80 does not exempt this proxy's own user, {user}: its rule lacks "
        f"`meta skuid != {user}`; `imdsproxy redirect --uid {user} | nft -f -` loads it anew"
    )


def _output(user: str, goal: str) -> str:
    # A name in quotes is looked up by nft when it loads the file; a number stands for itself.
    exempt = user if user.isdigit() else f'"{user}"'
    return f"""\
	chain output {{
		type nat hook output priority -100; policy accept;
		{_IMDS} meta skuid != {exempt} counter dnat to {goal}
	}}
"""


def _prerouting(goal: str) -> str:
    return f"""\
	# A pod's packets come in by what pods are plugged into, and not from the side on which IMDS is. Whoever comes
	# in by a network card is another machine, and gets no token of this one.
	chain prerouting {{
		type nat hook prerouting priority -100; policy accept;
		{_IMDS} meta iifkind {{ "bridge", "netkit", "veth" }} fib daddr . iif oif missing counter dnat to {goal}
	}}
"""


_GUARD = """\
	# route_localnet opens loopback to whoever writes 127.x.x.x on a packet; only what was redirected may go there,
	# and nothing from outside may seem to come from there.
	chain guard {
		type filter hook prerouting priority -300; policy accept;
		iifname != "lo" ip daddr 127.0.0.0/8 counter drop
		iifname != "lo" ip saddr 127.0.0.0/8 counter drop
	}
"""
