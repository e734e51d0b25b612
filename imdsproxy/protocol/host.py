"""Read a `Host` field, and find out whether it names IMDS itself."""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from imdsproxy.protocol.messages import IMDS_HOST
from imdsproxy.protocol.target import AUTHORITY

_IMDS_NUMBER = int(ipaddress.IPv4Address(IMDS_HOST))
# A name whose last label is a number is an IPv4 address to many readers (WHATWG URL, "ends in a number checker").
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Clients write the base URL of a Unix socket with a single label such as `unix`, which names no host elsewhere.
_PLACEHOLDER = re.compile(r"([a-z0-9\-_]+):[0-9]*")


IPAddress = IPv4Address | IPv6Address


def unmapped(address: IPAddress) -> IPAddress:
    """Return an address; a v4-mapped one (RFC 4291 section 2.5.5.2) as the IPv4 address."""
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address


def plain(text: str) -> IPAddress:
    """Return an address without its zone, `unmapped`. Raise ValueError if the text is not an address."""
    return IPv4Address(text) if ":" not in text else unmapped(IPv6Address(text.partition("%")[0]))


class HostField(NamedTuple):
    """The content of a `Host` field."""

    name: str
    """In lower case; empty for an IP literal."""
    imds: bool = False
    """Whether it is IMDS's address, in any spelling that is accepted."""


def read_host(host: bytes) -> HostField | None:
    """Read a Host field (RFC 9110 section 7.2); return None if it is malformed."""
    match = AUTHORITY.fullmatch(host.strip().decode("latin-1").lower())
    if match is None:
        return None
    name = match["name"]
    try:
        if not name.startswith("["):
            return HostField("", int(ipaddress.IPv4Address(name)) == _IMDS_NUMBER)
    except ValueError:
        return HostField(name)
    try:
        address = ipaddress.IPv6Address(name[1:-1])
    except ValueError:
        return None
    # A zone belongs to one machine and is never part of a Host (RFC 6874 section 4). IPv4 addresses are embedded in
    # the last 32 bits (RFC 4291 section 2.5.5, RFC 6052 section 2.1).
    return None if address.scope_id else HostField("", int(address) & 0xFFFFFFFF == _IMDS_NUMBER)


def size_of_host(host: bytes, field: HostField | None) -> int:
    """Return the bytes that a Host field and its reading take in memory, rounded up."""
    return 300 + len(host) + (0 if field is None else len(field.name))


def may_be_address(name: str) -> bool:
    """Return whether some readers take a name for an IPv4 address, as they do with a decimal or hexadecimal number."""
    return bool(_NUMBER_LABEL.fullmatch(name.removesuffix(".").rpartition(".")[2]))


def is_placeholder(authority: str) -> bool:
    """Return whether the authority of an absolute-form target names no host: one label, and no number."""
    match = _PLACEHOLDER.fullmatch(authority)
    return match is not None and not may_be_address(match[1])
