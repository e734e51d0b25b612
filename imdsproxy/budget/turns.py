"""A client's turn: the levels on which it takes turns with other clients."""

from __future__ import annotations

import ipaddress

from imdsproxy.protocol.host import unmapped
from imdsproxy.protocol.peer import Peer

Turn = tuple[str, ...]
"""The levels of a client's turn, the outermost first. All turns have the same number of levels."""

_NETWORK_BITS = 64


def turn_of(peer: Peer) -> Turn:
    """Return a client's turn: its user or network, its process or address within that, and the proxy that it names.

    1. Users take turns, and within a user its processes. Where the process is not known, the user's control groups
       take turns, because systemd and containers have one for each service.
    2. Where the user is not known, addresses take turns. All loopback addresses are one client, because a process can
       choose any of them, and its processes take turns within it where they are known, as on Windows. An IPv6
       network of 64 bits is one client, because one machine usually has a whole one, and its addresses take turns
       within it.
    3. The instance in `Imdsproxy-Via` divides a turn and never adds one. `Peer` has it only where the connection shows
       that the client may be a proxy.
    """
    proxy = peer.proxy or ""
    if peer.user is not None:
        return f"user {peer.user}", _process_or_group(peer), proxy
    outer, inner = _turn_of_address(peer.address or "")
    return outer, inner or ("" if peer.process is None else str(peer.process)), proxy


def _process_or_group(peer: Peer) -> str:
    if peer.process is not None:
        return str(peer.process)
    return "" if peer.cgroup is None else f"group {peer.cgroup}"


def _turn_of_address(written: str) -> tuple[str, str]:
    try:
        address = unmapped(ipaddress.ip_address(written))
    except ValueError:
        return written, ""
    if address.is_loopback:
        return "loopback", ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address), ""
    return str(ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False)), str(address)
