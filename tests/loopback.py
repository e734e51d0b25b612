"""Refuse the connections of this process's Python code to anything but loopback, Unix sockets aside.

The methods of `socket.socket` are replaced. An audit hook would see the same calls, but in CPython 3.11 it breaks
coverage: one thread at a time may install a trace function, and a hook written in Python lets another thread run while
it looks at `sys.settrace`. The other thread then fails with RuntimeError, at its start.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

_PLACES = {"connect": 0, "connect_ex": 0, "sendto": -1, "sendmsg": 3}
"""The methods that take the address of a peer, and where among their arguments it is."""


def only_loopback() -> None:
    """Refuse other addresses from now on, with RuntimeError."""
    for name, place in _PLACES.items():
        method = getattr(socket.socket, name, None)
        if method is not None:  # Windows has no sendmsg
            setattr(socket.socket, name, _guarded(method, place))


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's loopback; names other than localhost are not looked up."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _guarded(method: Callable[..., Any], place: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[place] if place < len(arguments) else None
        if isinstance(address, tuple) and not is_loopback(str(address[0])):
            raise RuntimeError(f"this process tried to reach {address!r}; only loopback is allowed")
        return method(self, *arguments)

    return guarded
