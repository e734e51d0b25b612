"""Find the client at the other end of a connection.

A lookup takes some microseconds and neither waits nor raises. It is made once a connection at most, and only if the
answer is used: a request has to wait for a permit, rules decide about it, or the access log names it.

A lookup belongs as close to accept(2) as possible where the answer grants something. If a redirect is loaded, the
kernel may give a connection another source port than the one that its client has, and a later socket of another user
may have that port by then.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from imdsproxy.peers.processes import ProcessSearch, program_at
from imdsproxy.peers.sock_diag import End, NoOwner, Owner, ask, read_answer, unmapped
from imdsproxy.peers.users import UserNames
from imdsproxy.protocol.peer import Peer, PeerKind, Pod

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): process, user, group
_UNIX = getattr(socket, "AF_UNIX", -1)  # Windows has no such family
_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST of linux/netfilter_ipv4.h
_SOCKADDR_IN = struct.Struct("=H2s4s8x")
_LOOPBACK_INTERFACE = 1  # its number in every network namespace
_LONGEST_ANSWER = 4096
_MOST_STALE_ANSWERS = 4
_EVERY_USER = ["0", "0", "4294967295"]  # user_namespaces(7): the mapping of the initial namespace
_NEVER_ALLOWED = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES})
_NO_NUMBER = "the user has no number in this container's user namespace"
_NOT_LINUX = "users are looked up on Linux only"


class PeerLookup:
    """Looks clients up, with one netlink socket for all of them. Only the event loop's thread may use it."""

    def __init__(self, pod_at: Callable[[str], Pod | None] | None = None) -> None:
        """Make a lookup. `pod_at` returns the pod that has an address, or None if that is unknown."""
        self._pod_at = pod_at
        self._kernel: socket.socket | None = None
        self._refused: str | None = None
        self._sequence = count(1)
        self._names = UserNames()
        self._processes = ProcessSearch()
        self._overflow = _overflow_user()

    def find(self, connection: socket.SocketType) -> Peer:
        """Return the client of a connection: its address and user, and at a Unix socket its process and program.

        Args:
            connection: The proxy's end of the connection, such as `transport.get_extra_info("socket")`.

        Returns:
            The client. Where its user is not found, `unknown` says why.
        """
        try:
            if connection.family == _UNIX:
                return self._at_unix_socket(connection)
            return self._with_pod(self._over_tcp(connection))
        except (OSError, ValueError) as error:  # the connection has been reset, or is neither TCP nor Unix
            return Peer(unknown=f"the connection has ended ({error})")

    def _with_pod(self, peer: Peer) -> Peer:
        pod = None if self._pod_at is None or peer.address is None else self._pod_at(peer.address)
        return peer if pod is None else peer._replace(pod=pod)

    def can_find_process(self, peer: Peer) -> bool:
        """Return whether a search may find the process of this client."""
        return (
            peer.process is None
            and peer.user is not None
            and peer.inode is not None
            and peer.unknown is None
            and self._processes.may_find(peer.user)
        )

    async def with_process(self, peer: Peer) -> Peer:
        """Return a TCP client with its process and program, if a search in a thread finds it.

        It takes milliseconds. Where nothing is found, `unknown` says so, and no further search is made.
        """
        if peer.user is None or peer.inode is None or not self.can_find_process(peer):
            return peer
        holder = await self._processes.find(peer.user, peer.inode)
        if holder is None:
            return peer._replace(unknown="no process of this user was found with this socket")
        return peer._replace(process=holder.process, executable=holder.executable)

    def close(self) -> None:
        """Close the netlink socket."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def __del__(self) -> None:
        """Close the netlink socket of a lookup whose server has no lifespan events."""
        self.close()

    def _at_unix_socket(self, connection: socket.SocketType) -> Peer:
        if sys.platform != "linux":
            return Peer(kind=PeerKind.UNIX, unknown=_NOT_LINUX)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(credentials)
        if not process:  # its user has a number here all the same
            return self._named(Peer(user=user, kind=PeerKind.UNIX, unknown="the process is in another container"))
        return self._named(
            Peer(user=user, process=process, executable=program_at(connection, process, user), kind=PeerKind.UNIX)
        )

    def _over_tcp(self, connection: socket.SocketType) -> Peer:
        host, port = connection.getpeername()[:2]
        if sys.platform != "linux":
            return Peer(host, kind=PeerKind.TCP, unknown=_NOT_LINUX)
        owner = self._owner(End(packed(host), port), _called(connection))
        if isinstance(owner, NoOwner):
            return Peer(host, kind=PeerKind.TCP, unknown=owner.why)
        if owner.user == self._overflow:
            return Peer(host, kind=PeerKind.TCP, unknown=_NO_NUMBER)
        name = self._names.of(owner.user)
        return Peer(
            host, owner.user, user_name=name, kind=PeerKind.TCP, inode=owner.inode, cgroup=owner.cgroup
        )  # made at once, because each copy of it takes microseconds

    def _owner(self, client: End, called: End) -> Owner | NoOwner:
        if len(client.address) != len(called.address):
            return NoOwner("the two ends of the connection have addresses of different families")
        owner = self._ask(client, called)
        if isinstance(owner, NoOwner) and owner.missing and client.is_loopback:
            return self._ask(client, called, _LOOPBACK_INTERFACE)  # the client's socket may be bound to it
        return owner

    def _ask(self, client: End, called: End, interface: int = 0) -> Owner | NoOwner:
        if sys.platform != "linux":
            return NoOwner(_NOT_LINUX)
        if self._refused is not None:
            return NoOwner(self._refused)
        try:
            if self._kernel is None:
                self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
                self._kernel.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sequence = next(self._sequence) & 0xFFFFFFFF
            self._kernel.send(ask(client, called, sequence, interface))
            for _ in range(_MOST_STALE_ANSWERS):  # the kernel answers while it takes the question
                answer = read_answer(self._kernel.recv(_LONGEST_ANSWER), client, called, sequence)
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

    def _named(self, peer: Peer) -> Peer:
        if peer.user is None or peer.user == self._overflow:
            return peer._replace(user=None, unknown=_NO_NUMBER)
        return peer._replace(user_name=self._names.of(peer.user))


def packed(host: str) -> bytes:
    """Return an address without its zone, as `End` has it. Raise OSError if it is none."""
    if ":" in host:
        return unmapped(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
    return socket.inet_pton(socket.AF_INET, host)


def _called(connection: socket.SocketType) -> End:
    """Return the end that the client has called: this one, or before a redirect another one."""
    host, port = connection.getsockname()[:2]
    try:
        original = connection.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DESTINATION, _SOCKADDR_IN.size)
        _, original_port, original_host = _SOCKADDR_IN.unpack(original)
        return End(original_host, int.from_bytes(original_port, "big"))
    except OSError:  # the kernel tracks no connections, or not this one
        return End(packed(host), port)


def _overflow_user() -> int | None:
    """Return the user id that stands for all users without one in this user namespace; None if every user has one."""
    try:
        if Path("/proc/self/uid_map").read_text(encoding="ascii").split() == _EVERY_USER:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65534 if os.name == "posix" else None
