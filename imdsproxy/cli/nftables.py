"""Write the nftables ruleset that redirects IMDS's address to the proxy.

Only one table, `ip imdsproxy`, is ever written or removed. The ruleset first declares that table and deletes it, so
loading it twice equals loading it once. nft applies a file completely or not at all (nft(8)).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from imdsproxy.protocol.messages import IMDS_HOST

TABLE = "ip imdsproxy"

# Before the address translations of other tables at -100, whatever the order in which the tables were loaded.
_PRIORITY = "-110"
_EXCEPT = {False: "except those of its own user", True: "except those of its own user and of this machine's root"}
_TO_IMDS = f"ip daddr {IMDS_HOST} tcp dport 80"
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"
"""The kernel setting (sysctl) without which forwarded packets never reach loopback."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect: its source and its destination."""

    user: str
    """The proxy's own user, by number or name. Its calls go to IMDS itself."""
    host: str
    """The IPv4 address of this machine at which the proxy listens."""
    port: int
    node: bool = False
    """Whether this machine is a node: calls that it forwards, those of its pods, are redirected too."""
    exclusive: bool = False
    """Whether only that user and root may answer at the proxy's address.

    A wrong user blocks the proxy's own replies, so that it cannot report the mistake.
    """

    root: bool = False
    """Whether the calls of root's programs are redirected on a node, too. Elsewhere they are in any case."""
    pods_left_out: bool = False
    """Whether the calls of a node's pods are not redirected all the same, because rules keep pods from IMDS."""

    @property
    def root_exempt(self) -> bool:
        """Whether root's programs reach IMDS itself, although root is not the proxy's own user."""
        return self.node and not self.root and self.user not in {"0", "root"}

    @property
    def pods(self) -> bool:
        """Whether calls of pods are redirected."""
        return self.node and not self.pods_left_out

    @property
    def needs_route_localnet(self) -> bool:
        """Whether the kernel must be allowed to deliver forwarded packets to loopback, which it drops by default."""
        return self.pods and ipaddress.IPv4Address(self.host).is_loopback


def rules(redirect: Redirect) -> str:
    """Return the ruleset, to be read by `nft -f`."""
    goal = f"{redirect.host}:{redirect.port}"
    chains = [_output(redirect, goal)]
    if redirect.exclusive:
        chains.append(_answer(redirect))
    if redirect.pods:
        chains.append(_prerouting(goal))
    if redirect.needs_route_localnet:
        chains.append(_GUARD)
    chains.append(_own_ports(redirect))
    about = f"# Calls of IMDS, {IMDS_HOST}:80, go to imdsproxy at {goal}, {_EXCEPT[redirect.root_exempt]}.\n"
    if redirect.needs_route_localnet:
        about += f"# Pods need this kernel setting as well: sysctl -w {ROUTE_LOCALNET}=1\n"
    body = "\n".join(chains)
    return f"#!/usr/sbin/nft -f\n{about}\ntable {TABLE}\ndelete table {TABLE}\n\ntable {TABLE} {{\n{body}}}\n"


def removal() -> str:
    """Return the ruleset that removes only the redirect. Loading it succeeds even if there is no redirect."""
    return f"#!/usr/sbin/nft -f\n# Calls of IMDS go to IMDS again.\n\ntable {TABLE}\ndelete table {TABLE}\n"


def _written(user: str) -> str:
    """Write a user as nft reads it. nft resolves a quoted name when it loads the file."""
    return user if user.isdigit() else f'"{user}"'


def _answer(redirect: Redirect) -> str:
    # With socket activation the socket belongs to root. Any other user that listens on the port while the proxy is
    # stopped would answer as IMDS for the whole machine. Refused connections still work: the kernel sends those.
    users = _with_root(redirect.user)
    return f"""\
	# Only the proxy's user and root may answer at its address.
	chain answer {{
		type filter hook output priority 0; policy accept;
		ip saddr {redirect.host} tcp sport {redirect.port} meta skuid != {users} counter drop
	}}
"""


def _with_root(user: str) -> str:
    return "0" if user in {"0", "root"} else f"{{ 0, {_written(user)} }}"


def _output(redirect: Redirect, goal: str) -> str:
    # The kubelet joins the cluster by IMDS (secure TLS bootstrapping), before the proxy's pod can run.
    root = "meta skuid != 0 " if redirect.root_exempt else ""
    why = "\t# Programs of root, such as the kubelet, need IMDS while the proxy is away.\n" if root else ""
    exempt = _with_root(redirect.user) if root else _written(redirect.user)
    # A comparison of users, "!=" too, fails for a packet of which the kernel knows no user. Any program can have the
    # kernel open a connection for it, by AF_SMC for example (net/smc/af_smc.c, net/netfilter/nft_meta.c of Linux).
    return f"""\
{why}\
	chain output {{
		type nat hook output priority {_PRIORITY}; policy accept;
		{_TO_IMDS} {root}meta skuid != {_written(redirect.user)} counter dnat to {goal}
		# Whatever has no known user is not exempt either.
		{_TO_IMDS} meta skuid {exempt} accept
		{_TO_IMDS} counter dnat to {goal}
	}}
"""


def _own_ports(redirect: Redirect) -> str:
    # The proxy finds the user of a client by the client's port. A client can have its port changed: it connects to the
    # proxy directly, and from the same port to IMDS. The port that the kernel then picks can be that of a connection
    # which another user, one exempt from the redirect, has to IMDS.
    return f"""\
	# Two connections can ask for one place in the table of connections, and the kernel then changes the port of one.
	# The proxy would take it for another user's, so it is dropped.
	chain ports {{
		type filter hook input priority 110; policy accept;
		ip daddr {redirect.host} tcp dport {redirect.port} ct status snat counter drop
	}}
"""


def _prerouting(goal: str) -> str:
    return f"""\
	# Packets of pods arrive by the kinds of interface that pods are attached to, and not from the side of IMDS.
	# Packets from a network card belong to another machine, which must not get a token of this one.
	chain prerouting {{
		type nat hook prerouting priority {_PRIORITY}; policy accept;
		{_TO_IMDS} meta iifkind {{ "bridge", "netkit", "veth" }} fib daddr . iif oif missing counter dnat to {goal}
	}}
"""


_GUARD = """\
	# route_localnet opens loopback to any packet that carries 127.x.x.x. Only redirected packets may go there, and
	# no packet from outside may claim to come from there.
	chain guard {
		type filter hook prerouting priority -300; policy accept;
		iifname != "lo" ip daddr 127.0.0.0/8 counter drop
		iifname != "lo" ip saddr 127.0.0.0/8 counter drop
	}
"""
