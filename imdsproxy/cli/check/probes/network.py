"""Routes, sockets, interfaces and web proxies of this machine."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

from imdsproxy.cli.check.facts import Reach, Route, Routes
from imdsproxy.cli.proc_net_tcp import Row, read_tcp_table
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import IMDS_HOST

AZURE = "168.63.129.16"
"""Azure's own DNS, DHCP and health service, the same on every VM. Its route is read; nothing is sent there."""
_TCP = Path("/proc/net/tcp")
_UNIX = Path("/proc/net/unix")
_LISTENS = 0x10000  # __SO_ACCEPTCON, in the flags of /proc/net/unix
_NOT_ASKED = Route(Reach.UNKNOWN)


def look_at_routes(upstream: Address) -> Routes:
    """Return the routes to the upstream and to Azure; none for a Unix socket, a name or loopback."""
    try:
        target = IPv4Address(upstream.host)
    except ValueError:
        return Routes("", _NOT_ASKED, _NOT_ASKED)
    if upstream.unix is not None or target.is_loopback:
        return Routes("", _NOT_ASKED, _NOT_ASKED)
    return Routes(str(target), route_to(str(target)), route_to(AZURE))


def route_to(target: str) -> Route:
    """Return the route to an IPv4 address, as the system has it."""
    if sys.platform == "win32":
        from imdsproxy.cli.check.probes.windows_network import route_on_windows  # noqa: PLC0415  # this system only

        return route_on_windows(target)
    elif sys.platform == "linux":  # noqa: RET505  # the type checker leaves out the branches of other systems
        from imdsproxy.cli.check.probes.linux_route import route_on_linux  # noqa: PLC0415  # this system only

        return route_on_linux(target)
    else:
        return Route(Reach.UNKNOWN, why="this system's routing table is not known here")


def tcp_rows() -> list[Row]:
    """Return the IPv4 TCP sockets of this machine; none where it has no such table."""
    with contextlib.suppress(OSError):
        return list(read_tcp_table(_TCP.read_text(encoding="ascii"), sys.byteorder))
    return []


def callers(rows: Iterable[Row], proxys: Iterable[int]) -> tuple[int, ...]:
    """Return the users with an open connection to IMDS, without those of the proxy."""
    users = {row.user for row in rows if row.calls and row.remote == (IMDS_HOST, 80)}
    return tuple(sorted(users - set(proxys)))


def listening_unix_sockets() -> dict[str, int]:
    """Return the inodes of the listening Unix sockets of this machine, by path (proc(5))."""
    with contextlib.suppress(OSError):
        return read_unix_table(_UNIX.read_text(encoding="utf-8", errors="surrogateescape"))
    return {}


def read_unix_table(text: str) -> dict[str, int]:
    """Return the inodes of the listening sockets in /proc/net/unix, by path."""
    found = {}
    for line in text.splitlines()[1:]:
        columns = line.split(maxsplit=7)
        if len(columns) == 8 and int(columns[3], 16) & _LISTENS:
            found[columns[7]] = int(columns[6])
    return found


def has_cilium() -> bool:
    """Return whether there are interfaces of Cilium."""
    with contextlib.suppress(OSError):
        return any(name.startswith("cilium_") for _, name in socket.if_nameindex())
    return False


def web_proxies() -> tuple[tuple[tuple[str, str], ...], bool]:
    """Return the web proxies of this environment, and whether 169.254.169.254 is among their exceptions."""
    return tuple(sorted(getproxies().items())), bool(proxy_bypass(IMDS_HOST))
