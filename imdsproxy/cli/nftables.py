"""The nftables ruleset that brings calls of IMDS's address to the proxy, as text.

One table of our own, `ip imdsproxy`, is all that is ever written or removed. The ruleset first declares that table
and deletes it, so loading it twice is loading it once, and nft carries a file out whole or not at all (nft(8)).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from imdsproxy.protocol.messages import IMDS_HOST

TABLE = "ip imdsproxy"

# Before other tables' translations at -100, whichever was loaded first.
_PRIORITY = "-110"
_TO_IMDS = f"ip daddr {IMDS_HOST} tcp dport 80"
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"
"""The kernel setting (sysctl) without which forwarded packets never reach loopback."""


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
    exclusive: bool = False
    """Whether nobody but that user and root may answer where clients are sent, while the proxy is away, say.

    With the wrong user it would silence the proxy itself, which could not even say so.
    """

    @property
    def needs_route_localnet(self) -> bool:
        """Whether the kernel must be told to take forwarded packets to loopback, which it otherwise drops."""
        return self.node and ipaddress.IPv4Address(self.host).is_loopback


def rules(redirect: Redirect) -> str:
    """Give the ruleset, to be read by `nft -f`."""
    goal = f"{redirect.host}:{redirect.port}"
    chains = [_output(redirect.user, goal)]
    if redirect.exclusive:
        chains.append(_answer(redirect))
    if redirect.node:
        chains.append(_prerouting(goal))
    if redirect.needs_route_localnet:
        chains.append(_GUARD)
    about = f"# Calls of IMDS, {IMDS_HOST}:80, go to imdsproxy at {goal}, except those of its own user.\n"
    if redirect.needs_route_localnet:
        about += f"# Pods need this kernel setting as well: sysctl -w {ROUTE_LOCALNET}=1\n"
    body = "\n".join(chains)
    return f"#!/usr/sbin/nft -f\n{about}\ntable {TABLE}\ndelete table {TABLE}\n\ntable {TABLE} {{\n{body}}}\n"


def removal() -> str:
    """Give the ruleset that takes the other away, and nothing else; harmless where there is none."""
    return f"#!/usr/sbin/nft -f\n# Calls of IMDS go to IMDS again.\n\ntable {TABLE}\ndelete table {TABLE}\n"


def _written(user: str) -> str:
    """Write a user for nft, which looks a name in quotes up when it loads the file."""
    return user if user.isdigit() else f'"{user}"'


def _answer(redirect: Redirect) -> str:
    # With socket activation the socket is root's. Whoever else holds the port while the proxy is away would be IMDS
    # for the whole machine; a connection that nobody takes is still refused, since that answer is the kernel's own.
    users = "0" if redirect.user in {"0", "root"} else f"{{ 0, {_written(redirect.user)} }}"
    return f"""\
	# Nobody but the proxy's user (and root) may answer in its place.
	chain answer {{
		type filter hook output priority 0; policy accept;
		ip saddr {redirect.host} tcp sport {redirect.port} meta skuid != {users} counter drop
	}}
"""


def _output(user: str, goal: str) -> str:
    exempt = _written(user)
    return f"""\
	chain output {{
		type nat hook output priority {_PRIORITY}; policy accept;
		{_TO_IMDS} meta skuid != {exempt} counter dnat to {goal}
	}}
"""


def _prerouting(goal: str) -> str:
    return f"""\
	# A pod's packets come in by what pods are plugged into, and not from the side on which IMDS is. Whoever comes
	# in by a network card is another machine, and gets no token of this one.
	chain prerouting {{
		type nat hook prerouting priority {_PRIORITY}; policy accept;
		{_TO_IMDS} meta iifkind {{ "bridge", "netkit", "veth" }} fib daddr . iif oif missing counter dnat to {goal}
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
