"""The clients that may ask at all, by address range."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from imdsproxy.protocol.host import plain

_REMEMBERED = 1024


def read_range(text: str) -> str:
    """Return an address range in its usual form, such as 10.0.0.0/24. Raise ValueError with what is wrong, in words."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not one") from None
    if network.network_address.is_loopback:
        raise ValueError("is loopback, which may always ask")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        raise ValueError("is a range of IPv4 addresses; write it as one, without ::ffff:")
    if network.network_address != ipaddress.ip_interface(text).ip:
        raise ValueError(f"begins within a range; write {network}, or the address alone")
    return str(network)


class ClientRanges:
    """The address ranges that may ask. Loopback may ask in any case."""

    def __init__(self, ranges: Iterable[str]) -> None:
        """Raise ValueError if one is not a range."""
        self._networks = tuple(map(ipaddress.ip_network, ranges))
        # Clients are few and come back, and to read an address takes longer than to find it.
        self.include = lru_cache(_REMEMBERED)(self._include)
        """Return whether a client's address may ask. An IPv4-mapped one counts as the IPv4 address."""

    def _include(self, text: str) -> bool:
        try:
            address = plain(text)
        except ValueError:
            return False  # what is not understood gets no token
        return address.is_loopback or any(address in network for network in self._networks)
