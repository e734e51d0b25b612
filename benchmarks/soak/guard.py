"""Refuse every connection of this process but to loopback: libraries of clients know an address that may be real."""

from __future__ import annotations

import ipaddress
import sys


def only_loopback() -> None:
    """Refuse other addresses from now on."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event not in {"socket.connect", "socket.sendto"}:
        return
    address = arguments[1]
    if isinstance(address, tuple) and not is_loopback(str(address[0])):
        raise RuntimeError(f"a client of the soak tried to reach {address!r}; only loopback is allowed")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's loopback; names other than localhost are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
