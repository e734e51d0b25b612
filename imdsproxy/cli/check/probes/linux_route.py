"""Ask the kernel's routing table for a route, without sending anything to its destination (rtnetlink(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from imdsproxy.cli.check.facts import Reach, Route

assert sys.platform == "linux"  # noqa: S101  # only imported there; this tells the type checker

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_ERROR = struct.Struct("=i")
_REQUEST = 1
_TYPE_ERROR, _TYPE_NEW_ROUTE, _TYPE_GET_ROUTE = 2, 24, 26
_DESTINATION, _INTERFACE, _GATEWAY, _SOURCE = 1, 4, 5, 7
_UNICAST, _LOCAL = 1, 2
_PATIENCE = 2.0
# A blackhole, prohibit and unreachable route, as `ip route get` reports them.
_BLOCKS = {errno.EINVAL, errno.EACCES, errno.EHOSTUNREACH}


def route_on_linux(target: str) -> Route:
    """Return the route to an IPv4 address."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(_PATIENCE)
            kernel.send(_question(target))
            return read_answer(kernel.recv(65536), socket.if_indextoname)
    except OSError as error:
        return Route(Reach.UNKNOWN, why=error.strerror or str(error))


def _question(target: str) -> bytes:
    attribute = _ATTRIBUTE.pack(8, _DESTINATION) + socket.inet_aton(target)
    message = _ROUTE.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + attribute
    return _HEADER.pack(_HEADER.size + len(message), _TYPE_GET_ROUTE, _REQUEST, 1, 0) + message


def read_answer(answer: bytes, name_of: Callable[[int], str]) -> Route:
    """Return the route in the kernel's answer; `name_of` returns the name of an interface's number."""
    _, kind, *_ = _HEADER.unpack_from(answer)
    body = answer[_HEADER.size :]
    if kind == _TYPE_ERROR:
        number = -_ERROR.unpack_from(body)[0]
        if number == errno.ENETUNREACH:
            return Route(Reach.NO_ROUTE)
        return Route(Reach.BLOCKED) if number in _BLOCKS else Route(Reach.UNKNOWN, why=os.strerror(number))
    if kind != _TYPE_NEW_ROUTE:
        return Route(Reach.UNKNOWN, why=f"the kernel answers with a message of type {kind}")
    found = dict(_attributes(body[_ROUTE.size :]))
    reach = {_UNICAST: Reach.ROUTED, _LOCAL: Reach.LOCAL}.get(_ROUTE.unpack_from(body)[7], Reach.BLOCKED)
    number = int.from_bytes(found.get(_INTERFACE, b""), sys.byteorder)
    return Route(
        reach,
        interface=name_of(number) if number else "",
        source=_address(found.get(_SOURCE)),
        gateway=_address(found.get(_GATEWAY)),
    )


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    while len(content) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(content)
        if length < _ATTRIBUTE.size:
            return
        yield kind, content[_ATTRIBUTE.size : length]
        content = content[-(-length // 4) * 4 :]


def _address(packed: bytes | None) -> str:
    return socket.inet_ntoa(packed) if packed is not None else ""
