"""Read the tables of Windows' IP Helper library (iprtrmib.h)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from imdsproxy.cli.check.facts import Reach, Route

# MIB_IPFORWARDROW of iprtrmib.h: destination, mask, policy, next hop, interface, type, protocol, age, next hop's AS,
# five metrics. MIB_IPADDRROW: address, interface, mask, broadcast, reassembly size, unused, type.
FORWARD_ROW = struct.Struct("<14I")
_ADDRESS_ROW = struct.Struct("<5IHH")
_NEXT_HOP, _INTERFACE, _TYPE = 3, 4, 5
_DIRECT = 3  # MIB_IPROUTE_TYPE_DIRECT: on the link
_DYNAMIC = 0x0004  # MIB_IPADDR_DYNAMIC: from DHCP


def read_row(row: bytes, addresses: list[tuple[str, int, bool]]) -> Route:
    """Return the route in a MIB_IPFORWARDROW; `addresses` are this machine's, with interface and whether by DHCP."""
    found = FORWARD_ROW.unpack(row)
    source, dhcp = next(((each, by) for each, number, by in addresses if number == found[_INTERFACE]), ("", None))
    gateway = "" if found[_TYPE] == _DIRECT else _text(found[_NEXT_HOP])
    return Route(Reach.ROUTED, f"number {found[_INTERFACE]}", source, gateway, dhcp)


def read_addresses(table: bytes) -> Iterator[tuple[str, int, bool]]:
    """Yield address, interface and whether it is from DHCP, for each row of a MIB_IPADDRTABLE."""
    (count,) = struct.unpack_from("<I", table)
    for index in range(count):
        address, interface, _, _, _, _, kind = _ADDRESS_ROW.unpack_from(table, 4 + index * _ADDRESS_ROW.size)
        yield _text(address), interface, bool(kind & _DYNAMIC)


def _text(address: int) -> str:
    return socket.inet_ntoa(struct.pack("<I", address))
