"""What Linux knows of a connection's other end: the user and inode of a TCP socket, the user and process at a Unix one.

The order of the two questions about a TCP connection matters. A redirect changes the destination, so the one that the
client called comes first, from the kernel's table of tracked connections. Otherwise a client behind the redirect could
be taken for another user's socket that is connected to the proxy itself from the same address and port.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from imdsproxy.peers.processes import program_at
from imdsproxy.peers.sock_diag import End, NoOwner, Owner, ask, read_answer, unmapped
from imdsproxy.peers.users import UserNames
from imdsproxy.protocol.peer import Peer, PeerKind

assert sys.platform == "linux"  # noqa: S101  # `lookup` chooses by the system; this tells the type checker

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): process, user, group
_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST of linux/netfilter_ipv4.h
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_IP = int(socket.IPPROTO_IP)  # a plain number, because a member of an enumeration costs a part of a microsecond
_NOT_TRACKED_AT_ALL = errno.ENOPROTOOPT  # no table of tracked connections, so no connection is redirected
_SECOND = 1.0
_LOOPBACK_INTERFACE = 1  # its number in every network namespace
_LONGEST_ANSWER = 4096
_SOME_STALE_ANSWERS = range(4)
_EVERY_USER = ["0", "0", "4294967295"]  # user_namespaces(7): the mapping of the initial namespace
_NEVER_ALLOWED = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES})
_NO_NUMBER = "the user has no number in this container's user namespace"
_CLOSED_ON_EXEC = int(getattr(socket, "SOCK_CLOEXEC", 0))
# The tuples are made by the class under them, in a third of the time.
_end = _peer = tuple.__new__
_TCP, _UNIX = PeerKind.TCP, PeerKind.UNIX


class LinuxSockets:
    """Asks the kernel, with one netlink socket for all connections. Only the event loop's thread may use it."""

    def __init__(self, *, programs: bool = True, now: Callable[[], float] = time.monotonic) -> None:
        """Open nothing yet.

        Args:
            programs: Whether to find the programs of processes at a Unix socket.
            now: A monotonic clock, in seconds.
        """
        self._programs = programs
        self._now = now
        self._kernel: socket.SocketType | None = None
        self._refused: str | None = None
        self._sequence = 0
        self._names = UserNames(now=now)
        self._overflow = _overflow_user()
        self._look_for_redirects = 0.0

    def over_tcp(self, connection: socket.SocketType, client: tuple[str, int] | None = None) -> Peer:
        """Return the client of a TCP connection; see `lookup.Sockets`."""
        host, port = client or connection.getpeername()[:2]
        called = self._called(connection)
        end = _end(End, (packed(host), port))
        found = self._ask(end, called)
        if isinstance(found, NoOwner):
            found = self._again(end, called, found)
            if isinstance(found, NoOwner):
                return Peer(host, kind=_TCP, unknown=found.why)
        # If the connection still stands, no other socket can have been in its place. Otherwise another user's may have
        # the port of a client that has reset its connection.
        connection.getpeername()
        user, inode, cgroup = found
        if user == self._overflow:
            return Peer(host, kind=_TCP, unknown=_NO_NUMBER)
        # All fields by position and at once, because names and copies cost a part of a microsecond each.
        return _peer(Peer, (host, user, None, None, self._names.of(user), None, _TCP, inode, cgroup, None, None))

    def at_unix_socket(self, connection: socket.SocketType) -> Peer:
        """Return the client of a Unix socket. Raise OSError if the connection has ended."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(credentials)
        if user == self._overflow:
            return Peer(process=process or None, kind=_UNIX, unknown=_NO_NUMBER)
        name = self._names.of(user)
        if not process:  # its user has a number here all the same
            return Peer(user=user, user_name=name, kind=_UNIX, unknown="the process is in another container")
        program = program_at(connection, process, user) if self._programs else None
        return Peer(user=user, process=process, user_name=name, executable=program, kind=_UNIX)

    def owner(self, client: End, called: End) -> Owner | NoOwner:
        """Return the owner of the socket with these ends: the client's own, and the one that it called."""
        found = self._ask(client, called)
        return self._again(client, called, found) if isinstance(found, NoOwner) else found

    def _again(self, client: End, called: End, found: NoOwner) -> Owner | NoOwner:
        """Ask once more where the client's socket may be bound to the loopback interface."""
        return self._ask(client, called, _LOOPBACK_INTERFACE) if found.missing and client.is_loopback else found

    def close(self) -> None:
        """Close the netlink socket."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _ask(self, client: End, called: End, interface: int = 0) -> Owner | NoOwner:
        if len(client[0]) != len(called[0]):
            return NoOwner("the two ends of the connection have addresses of different families")
        if self._refused is not None:
            return NoOwner(self._refused)
        try:
            kernel = self._kernel or self._opened()
            sequence = self._sequence = self._sequence + 1 & 0xFFFFFFFF
            kernel.send(ask(client, called, sequence, interface))
            for _ in _SOME_STALE_ANSWERS:  # the kernel answers while it takes the question
                answer = read_answer(kernel.recv(_LONGEST_ANSWER), client, called, sequence)
                if answer is not None:
                    return answer
            return NoOwner("the kernel answered another question")
        except OSError as error:
            why = f"the kernel cannot be asked by sock_diag ({error.strerror or error})"
            if self._kernel is None and error.errno in _NEVER_ALLOWED:
                self._refused = why
                fields = {"because": why, "allow": "AF_NETLINK (RestrictAddressFamilies= of a systemd unit)"}
                logger.warning("users of TCP clients are unknown", extra={"fields": fields})
            self.close()
            return NoOwner(why)

    def _opened(self) -> socket.SocketType:
        # The class under `socket.socket`, whose methods are called without a step in Python.
        self._kernel = socket.SocketType(int(socket.AF_NETLINK), int(socket.SOCK_RAW) | _CLOSED_ON_EXEC, _SOCK_DIAG)
        self._kernel.setblocking(False)  # noqa: FBT003  # the standard library's signature
        return self._kernel

    def _called(self, connection: socket.SocketType) -> End:
        """Return the end that the client has called: this one, or before a redirect another one.

        Where the kernel tracks no connections at all, it is asked for redirects once a second, because each refusal
        costs microseconds.
        """
        now = self._now()
        if now >= self._look_for_redirects:
            try:
                original = connection.getsockopt(_IP, _ORIGINAL_DESTINATION, _SOCKADDR_IN.size)
                original_port, original_host = _SOCKADDR_IN.unpack(original)
                return _end(End, (original_host, original_port))
            except OSError as error:
                if error.errno == _NOT_TRACKED_AT_ALL:
                    self._look_for_redirects = now + _SECOND
        host, port = connection.getsockname()[:2]
        return _end(End, (packed(host), port))


def packed(host: str) -> bytes:
    """Return an address without its zone, as `End` has it. Raise OSError if it is not an address."""
    if ":" in host:
        return unmapped(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
    return socket.inet_aton(host)


def _overflow_user() -> int | None:
    """Return the user id that stands for all users without one in this user namespace; None if every user has one."""
    try:
        if Path("/proc/self/uid_map").read_text(encoding="ascii").split() == _EVERY_USER:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65534 if os.name == "posix" else None
