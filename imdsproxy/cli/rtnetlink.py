"""Messages of rtnetlink(7) that make, find and remove one interface with one IPv4 address.

The image has no `ip`, and five messages need no library.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # rtattr
_CODE = struct.Struct("=i")

_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _GET_ADDRESS = 20, 22
_REQUEST, _ACKNOWLEDGE, _DUMP = 0x001, 0x004, 0x300
_CREATE, _EXCLUSIVE, _REPLACE = 0x400, 0x200, 0x100

_NAME, _LINK_INFO, _ALIAS = 3, 18, 20  # IFLA_IFNAME, IFLA_LINKINFO, IFLA_IFALIAS
_KIND = 1  # IFLA_INFO_KIND
_FAR, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_IPV4 = 2  # AF_INET
_UP = 1  # IFF_UP
_HOST_SCOPE = 254  # RT_SCOPE_HOST
_PREFIX = 32

ADDRESS_CHANGES = 0x10
"""The group that gets a message for each change of an IPv4 address (RTMGRP_IPV4_IFADDR)."""


class Link(NamedTuple):
    """A network interface."""

    number: int
    name: str
    alias: str = ""
    """The text that `ip link set … alias` sets, for people and programs."""
    kind: str = ""
    """Its kind, such as `dummy`; empty for a network card."""


class Held(NamedTuple):
    """An IPv4 address that an interface of this machine has."""

    link: int
    """The number of the interface."""
    address: str


def ask_links(sequence: int) -> bytes:
    """Return the request for every interface."""
    return _message(_GET_LINK, _DUMP, sequence, _LINK.pack(0, 0, 0, 0, 0))


def ask_addresses(sequence: int) -> bytes:
    """Return the request for every IPv4 address."""
    return _message(_GET_ADDRESS, _DUMP, sequence, _ADDRESS.pack(_IPV4, 0, 0, 0, 0))


def make_link(sequence: int, name: str, kind: str) -> bytes:
    """Return the request for a new interface of a kind. It fails if the name is taken."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(_NAME, name) + _attribute(_LINK_INFO, _text(_KIND, kind))
    return _message(_NEW_LINK, _ACKNOWLEDGE | _CREATE | _EXCLUSIVE, sequence, body)


def raise_link(sequence: int, index: int, alias: str) -> bytes:
    """Return the request to mark an interface with an alias and to bring it up."""
    return _message(_NEW_LINK, _ACKNOWLEDGE, sequence, _LINK.pack(0, 0, index, _UP, _UP) + _text(_ALIAS, alias))


def remove_link(sequence: int, index: int) -> bytes:
    """Return the request to remove an interface, and its addresses with it."""
    return _message(_DELETE_LINK, _ACKNOWLEDGE, sequence, _LINK.pack(0, 0, index, 0, 0))


def add_address(sequence: int, index: int, address: str) -> bytes:
    """Return the request to add an address that only this machine uses, or to keep it.

    Its scope is the host, as that of 127.0.0.1, so that it never becomes the source of a packet to somewhere else.
    """
    packed = ipaddress.IPv4Address(address).packed
    body = _ADDRESS.pack(_IPV4, _PREFIX, 0, _HOST_SCOPE, index) + _attribute(_LOCAL, packed) + _attribute(_FAR, packed)
    return _message(_NEW_ADDRESS, _ACKNOWLEDGE | _CREATE | _REPLACE, sequence, body)


class Answers:
    """The kernel's answers to one request, from any number of reads."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.links: list[Link] = []
        self.held: list[Held] = []
        self.error: int | None = None
        """The error number, 0 for success; None until the last answer has been read."""

    def read(self, data: bytes) -> None:
        """Read messages, those to other requests left out."""
        for kind, sequence, body in _messages(data):
            if sequence != self.sequence:
                continue
            if kind == _ERROR:
                (code,) = _CODE.unpack_from(body)
                self.error = -code
            elif kind == _DONE:
                self.error = 0
            elif kind == _NEW_LINK:
                self.links.append(_link(body))
            elif kind == _NEW_ADDRESS:
                self.held.extend(_held(body))


def _link(body: bytes) -> Link:
    index = _LINK.unpack_from(body)[2]
    found = dict(_attributes(body[_LINK.size :]))
    info = dict(_attributes(found.get(_LINK_INFO, b"")))
    return Link(index, _read_text(found.get(_NAME)), _read_text(found.get(_ALIAS)), _read_text(info.get(_KIND)))


def _held(body: bytes) -> Iterator[Held]:
    index = _ADDRESS.unpack_from(body)[4]
    found = dict(_attributes(body[_ADDRESS.size :]))
    # The far end of a point-to-point interface is another machine's; LOCAL is missing where both are one.
    packed = found.get(_LOCAL, found.get(_FAR))
    if packed is not None and len(packed) == len(ipaddress.IPv4Address(0).packed):
        yield Held(index, str(ipaddress.IPv4Address(packed)))


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _read_text(value: bytes | None) -> str:
    return "" if value is None else value.rstrip(b"\0").decode("utf-8", "replace")


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]  # without the flag for nesting
        at += length + 3 & ~3
