"""A listener at a link-local address of this machine, for the machine itself and its pods.

Linux takes a packet for any of its addresses from any interface (the weak host model, RFC 1122 section 3.3.4.2). So a
neighbour in the same network reaches such an address by way of this machine. The kernel reports by which interface
a connection came. That needs no privilege and no netfilter rule, so it also works where eBPF replaces netfilter.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

# Of <linux/in.h>; Python names none of them.
_IP_PKTINFO, _IP_PKTOPTIONS, _IP_FREEBIND = 8, 9, 15
_OPTIONS = struct.Struct("@NiiiII")  # cmsghdr, in_pktinfo
_PACKET_INFORMATION = (socket.IPPROTO_IP, _IP_PKTINFO)
_ROUTES = Path("/proc/self/net/route")
_CARDS = Path("/sys/class/net")
_KEPT = 10.0
"""Seconds for which the list of interfaces is kept."""


class Gate:
    """Recognises connections that come from other machines."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._read_at = -_KEPT
        self._outside: frozenset[int] | None = None  # None until it has been read

    def is_outside(self, accepted: socket.SocketType) -> bool:
        """Return whether a connection came by an interface that leads to other machines.

        What is not known counts as outside: a connection that has ended already, or interfaces that cannot be read.
        """
        try:
            number = _interface(accepted)
        except OSError:
            return True
        now = self._now()
        if now - self._read_at >= _KEPT:
            self._read_at = now
            with contextlib.suppress(OSError):  # then those that were read before still count
                self._outside = frozenset(_outside_now())
        return number is None or self._outside is None or number in self._outside


def _interface(accepted: socket.SocketType) -> int | None:
    """Return the number of the interface by which a connection came. Raise OSError if it has ended."""
    number = interface_of(accepted.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, _OPTIONS.size))
    if number is None:  # it waited at a socket of a service manager before that was prepared; the kernel knows it still
        accepted.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        number = interface_of(accepted.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, _OPTIONS.size))
    return number


def prepare(listening: socket.socket, address: str) -> Gate:
    """Prepare a socket for such an address: before it is bound, if the address may not exist yet."""
    listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    listening.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)  # its connections inherit that
    names = ",".join(_outside_now().values()) or "none"
    logger.info("listener for this machine and its pods", extra={"fields": {"address": address, "closed_to": names}})
    if not _exists(address):
        logger.warning(
            "no interface has the address of a listener yet; it is reached once one has",
            extra={"fields": {"address": address}},
        )
    return Gate()


def interface_of(options: bytes) -> int | None:
    """Return the number of the interface in the control message of IP_PKTOPTIONS (ip(7)), or None if it has none."""
    if len(options) < _OPTIONS.size:
        return None
    _, level, kind, number, _, _ = _OPTIONS.unpack_from(options)
    return number if (level, kind) == _PACKET_INFORMATION else None


def outside_interfaces(
    routes: str, interfaces: Sequence[tuple[int, str]], is_card: Callable[[str], bool]
) -> dict[int, str]:
    """Return the interfaces that lead to other machines: network cards, and those with a default route.

    Args:
        routes: The text of /proc/net/route.
        interfaces: Number and name of each interface.
        is_card: Returns whether an interface is a network card.
    """
    rows = [line.split() for line in routes.splitlines()[1:]]
    default = {row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"}
    return {number: name for number, name in interfaces if name in default or is_card(name)}


def _outside_now() -> dict[int, str]:
    return outside_interfaces(_ROUTES.read_text(encoding="ascii"), socket.if_nameindex(), _has_device)


def _has_device(name: str) -> bool:
    """Return whether an interface is a network card, which has a device, and not one of software."""
    return (_CARDS / name / "device").exists()


def _exists(address: str) -> bool:
    """Return whether an interface of this machine has the address."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
