"""The kernel's answer to "who has the socket with these two ends?": messages of sock_diag(7).

A socket that is not in a live state has no owner any more, and the kernel reports it with user 0 and inode 0. Its
answer is never taken for root's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

_IPV4, _IPV6 = 2, 10  # AF_INET, AF_INET6 on Linux
_TCP = 6
_BYTES_V4 = 4
_LOOPBACK_V4, _LOOPBACK_V6 = 127, b"\0" * 15 + b"\1"
_MAPPED = b"\0" * 10 + b"\xff" * 2
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1  # NLM_F_REQUEST
_ERROR = 2  # NLMSG_ERROR
_NOT_FOUND = 2  # ENOENT
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_PORTS = struct.Struct("!HH")
# nlmsghdr and inet_diag_req_v2: family, protocol, states; ports, both addresses, interface, cookie.
_ASK = struct.Struct("=IHHIIBBBxI4s16s16sIII")
_NO_COOKIE = 0xFFFFFFFF  # INET_DIAG_NOCOOKIE, twice
# nlmsghdr and inet_diag_msg: kind and sequence; family, state, ports, both addresses, user, inode. One step reads them,
# because this is the larger part of a lookup that is not the kernel's.
_FOUND = struct.Struct("=4xHxxI4xBBxx4s16s16s24xII")
_CODE = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_NUMBER = struct.Struct("=Q")
_FOUND_SIZE, _CGROUP_LENGTH = _FOUND.size, _ATTRIBUTE.size + _NUMBER.size
_CGROUP = 21  # INET_DIAG_CGROUP_ID, sent unasked since Linux 5.8
_ANY_STATE = 0xFFFFFFFF
LIVE_STATES = frozenset({1, 4, 5, 8})
"""ESTABLISHED, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT: the states in which a client may still wait for an answer."""
_owner = tuple.__new__  # a third of the time of `Owner(...)`
MESSAGE = _ASK.size
"""The length of a request in bytes."""


class End(NamedTuple):
    """One end of a connection."""

    address: bytes
    """The four bytes of an IPv4 address, which a v4-mapped one is as well, or the sixteen of an IPv6 address."""
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether the address is one of this machine's own loopback."""
        return self.address == _LOOPBACK_V6 or (len(self.address) == _BYTES_V4 and self.address[0] == _LOOPBACK_V4)


def unmapped(packed: bytes) -> bytes:
    """Return an address of four or sixteen bytes; a v4-mapped one as the IPv4 address."""
    return packed.removeprefix(_MAPPED)


class Owner(NamedTuple):
    """The owner of a live socket."""

    user: int
    inode: int
    cgroup: int | None = None
    """The id of the control group (cgroup v2) in which the socket was made; None if the kernel does not say."""


@dataclass(frozen=True, slots=True)
class NoOwner:
    """There is no owner. `missing` is whether the kernel has no such socket, which another interface may have."""

    why: str
    missing: bool = False


def ask(local: End, remote: End, sequence: int, interface: int = 0) -> bytes:
    """Return the request for the socket with these ends.

    Args:
        local: The socket's own end, which is the client's.
        remote: The end that it is connected to: the proxy's, or before a redirect the one that the client called.
        sequence: A number that the answer repeats.
        interface: The interface to which the socket is bound (SO_BINDTODEVICE); 0 for an unbound socket.
    """
    address, port = local
    other, other_port = remote
    return _ASK.pack(
        MESSAGE,
        _SOCK_DIAG_BY_FAMILY,
        _REQUEST,
        sequence,
        0,
        _IPV4 if len(address) == _BYTES_V4 else _IPV6,
        _TCP,
        0,
        _ANY_STATE,
        _PORTS.pack(port, other_port),
        address,
        other,
        interface,
        _NO_COOKIE,
        _NO_COOKIE,
    )


def read_answer(answer: bytes, local: End, remote: End, sequence: int) -> Owner | NoOwner | None:
    """Return the owner in an answer, or None if it answers another request.

    The kernel's search also finds a socket that listens at `local`, so the ends are compared.
    """
    if len(answer) < _FOUND_SIZE:
        return _without_socket(answer, sequence)
    kind, number, family, state, ports, source, target, user, inode = _FOUND.unpack_from(answer)
    if number != sequence:
        return None
    if kind != _SOCK_DIAG_BY_FAMILY:
        return _without_socket(answer, sequence)
    address, port = local
    other, other_port = remote
    if (
        ports != _PORTS.pack(port, other_port)
        or (source[:_BYTES_V4] if family == _IPV4 else unmapped(source)) != address
        or (target[:_BYTES_V4] if family == _IPV4 else unmapped(target)) != other
    ):
        return NoOwner("no socket of this network namespace is connected from this address and port", missing=True)
    if state not in LIVE_STATES or not inode:
        return NoOwner("the client has closed its socket")
    return _owner(Owner, (user, inode, _cgroup(answer)))


def _without_socket(answer: bytes, sequence: int) -> NoOwner | None:
    """Return the reason in an answer that has no socket."""
    if len(answer) < _HEADER.size + _CODE.size:
        return NoOwner("the kernel's answer is too short")
    _, kind, _, number, _ = _HEADER.unpack_from(answer)
    if number != sequence:
        return None
    if kind == _ERROR:
        return _refusal(*_CODE.unpack_from(answer, _HEADER.size))
    return NoOwner("the kernel's answer is not understood")


def _refusal(code: int) -> NoOwner:
    if code == -_NOT_FOUND:
        return NoOwner("no socket of this network namespace has this address and port", missing=True)
    return NoOwner(f"the kernel refused the question (error {-code})")


def _cgroup(answer: bytes) -> int | None:
    at, end, read = _FOUND_SIZE, len(answer), _ATTRIBUTE.unpack_from
    while at + 4 <= end:
        length, kind = read(answer, at)
        if kind == _CGROUP and length == _CGROUP_LENGTH and at + length <= end:
            number: int = _NUMBER.unpack_from(answer, at + 4)[0]
            return number
        at += length + 3 & ~3 or 4  # attributes begin at multiples of four bytes
    return None
