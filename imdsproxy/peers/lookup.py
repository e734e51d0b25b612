"""Find the client at the other end of a connection.

A lookup neither waits nor raises. It takes some microseconds on Linux. On Windows it reads a table of all connections
of the machine. It is made once a connection at most, and only if the answer is used: a request has to wait for a
permit, rules decide about it, or the access log names it.

A lookup belongs as close to accept(2) as possible where the answer grants something. If a redirect is loaded, the
kernel may give a connection another source port than the one that its client has, and a later socket of another user
may have that port by then.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Protocol

from imdsproxy.peers.processes import ProcessSearch
from imdsproxy.protocol.peer import Peer, PeerKind, Pod

_UNIX = getattr(socket, "AF_UNIX", -1)  # Windows has no such family


class Sockets(Protocol):
    """What a system knows of the other end of a connection. Raises OSError if the connection has ended."""

    def over_tcp(self, connection: socket.SocketType, client: tuple[str, int] | None = None) -> Peer:
        """Return the client of a TCP connection; `client` is its address and port, where accept(2) returned them."""
        ...

    def at_unix_socket(self, connection: socket.SocketType) -> Peer:
        """Return the client of a Unix socket."""
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


class _UnknownSystem:
    """A system whose sockets cannot be asked about. Clients over TCP have their addresses."""

    def over_tcp(self, connection: socket.SocketType, client: tuple[str, int] | None = None) -> Peer:
        return Peer((client or connection.getpeername())[0], kind=PeerKind.TCP, unknown=_NOT_HERE)

    def at_unix_socket(self, connection: socket.SocketType) -> Peer:
        del connection
        return Peer(kind=PeerKind.UNIX, unknown=_NOT_HERE)

    def close(self) -> None:
        pass


_NOT_HERE = f"users are looked up on Linux and Windows only, and this is {sys.platform}"


def sockets_of_this_system(*, programs: bool) -> Sockets:
    """Return what this system knows of connections. This is the only place where systems differ.

    Args:
        programs: Whether the program of a process at a Unix socket is used, which takes tens of microseconds to find.
    """
    if sys.platform == "linux":
        from imdsproxy.peers.linux_sockets import LinuxSockets  # noqa: PLC0415  # exists on Linux only

        return LinuxSockets(programs=programs)
    elif sys.platform == "win32":  # noqa: RET505  # the type checker takes only a branch as unreachable
        from imdsproxy.peers.windows_sockets import WindowsSockets  # noqa: PLC0415  # exists on Windows only

        return WindowsSockets()
    else:
        return _UnknownSystem()


class PeerLookup:
    """Looks clients up. Only the event loop's thread may use it."""

    def __init__(
        self,
        pod_at: Callable[[str], Pod | None] | None = None,
        *,
        programs: bool = True,
        sockets: Sockets | None = None,
    ) -> None:
        """Make a lookup.

        Args:
            pod_at: Returns the pod that has an address, or None if that is unknown; None if pods are never known.
            programs: Whether the programs of clients are used, by rules or the access log.
            sockets: What the system knows; None for this system's.
        """
        self._pod_at = pod_at
        self._sockets = sockets or sockets_of_this_system(programs=programs)
        self._processes = ProcessSearch()

    def find(self, connection: socket.SocketType, client: tuple[str, int] | None = None) -> Peer:
        """Return the client of a connection: its address and user, at a Unix socket and on Windows its process, too.

        Args:
            connection: The proxy's end of the connection, such as `transport.get_extra_info("socket")`.
            client: The client's address and port, where accept(2) returned them.

        Returns:
            The client. Where its user is not found, `unknown` says why.
        """
        try:
            if connection.family == _UNIX:
                return self._sockets.at_unix_socket(connection)
            peer = self._sockets.over_tcp(connection, client)
        except (OSError, ValueError) as error:  # the connection has been reset, or is neither TCP nor Unix
            return Peer(unknown=f"the connection has ended ({error})")
        return peer if self._pod_at is None else self._with_pod(peer)

    def _with_pod(self, peer: Peer) -> Peer:
        pod = None if self._pod_at is None or peer.address is None else self._pod_at(peer.address)
        return peer if pod is None else peer._replace(pod=pod)

    def can_find_process(self, peer: Peer) -> bool:
        """Return whether a search may find the process of this client."""
        return (
            peer.process is None
            and isinstance(peer.user, int)
            and peer.inode is not None
            and peer.unknown is None
            and self._processes.may_find(peer.user)
        )

    async def with_process(self, peer: Peer) -> Peer:
        """Return a TCP client with its process and program, if a search in a thread finds it.

        It takes milliseconds. Where nothing is found, `unknown` says so, and no further search is made.
        """
        if not isinstance(peer.user, int) or peer.inode is None or not self.can_find_process(peer):
            return peer
        holder = await self._processes.find(peer.user, peer.inode)
        if holder is None:
            return peer._replace(unknown="no process of this user was found with this socket")
        return peer._replace(process=holder.process, executable=holder.executable)

    def close(self) -> None:
        """Release what is open."""
        self._sockets.close()

    def __del__(self) -> None:
        """Close the netlink socket of a lookup whose server has no lifespan events."""
        self.close()
