"""Handle the new connections of one listener: answer or refuse them at once, or pass them to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from imdsproxy.access.subject import UNKNOWN_SUBJECT, subject_of
from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Client, KnownClient, description_of
from imdsproxy.server.connection import Connection
from imdsproxy.server.connection_limit import Admission, ConnectionLimit
from imdsproxy.server.connection_refusals import NOT_A_CLIENT, NOT_OF_THIS_MACHINE, TOO_MANY
from imdsproxy.server.first_request import LONGEST_FIRST, FirstRequests
from imdsproxy.server.hosted_application import HostedApplication
from imdsproxy.server.read_buffer import LONGEST_READ
from imdsproxy.server.reader import Reader

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from imdsproxy.server.acceptor import Address
    from imdsproxy.server.fast_path import FastPathConnection
    from imdsproxy.server.node_listener import Gate

# As plain numbers, because each step on a `socket.MsgFlag` takes as long as a lookup in the cache.
_WITHOUT_WAITING = int(getattr(socket, "MSG_DONTWAIT", 0))  # Windows has none, and accepts in another way
# A request that is not answered here stays in the socket. If it were passed on with the new transport and paused it,
# uvloop would read further bytes all the same.
_STAYS_UNREAD = _WITHOUT_WAITING | int(socket.MSG_PEEK)


MOST_TURNED_AWAY = 32
"""Connections of clients that may not ask at all, for whose first bytes a listener waits before it refuses them."""


class Arrivals:
    """Takes the connections that an `Acceptor` accepts."""

    def __init__(  # noqa: PLR0913  # the parts it joins, all by name
        self,
        *,
        application: HostedApplication,
        connection_limit: ConnectionLimit,
        make: Callable[[], Connection],
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        first: FirstRequests | None,
        admin: bool = False,
        gate: Gate | None = None,
    ) -> None:
        """Serve the connections of one listener.

        Args:
            application: The application.
            connection_limit: The limit of connections.
            make: Returns a connection without a transport.
            state: uvicorn's state, which counts requests.
            loop: The event loop.
            first: Answers first requests; None if none may be answered before there is a transport.
            admin: Whether it is the admin listener.
            gate: Recognises connections from other machines, which are refused; None if they are served.
        """
        self._application = application
        self._connection_limit = connection_limit
        self._make = make
        self._state = state
        self._loop = loop
        self._first = first
        self._admin = admin
        self._gate = gate
        self._turned_away: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._under_way: set[asyncio.Task[None]] = set()

    def take(self, accepted: socket.SocketType, address: Address) -> bool:
        """Take a connection, and return whether its first request is served already."""
        if self._first is None:
            return self._pass_on(accepted, address)
        refusal = self._unwelcome(accepted, address)
        if refusal is not None:
            return self._turn_away(accepted, address, refusal)
        # Where rules are set, the client is looked up at once: its port may soon be that of another user's socket.
        peer = None if self._application.access is None else self._find(accepted, address)
        data = _read(accepted, LONGEST_FIRST + 1, _STAYS_UNREAD)
        if not 0 < len(data) <= LONGEST_FIRST:
            return self._pass_on(accepted, address, peer)
        peer, client = self._named(accepted, address, peer)
        subject = UNKNOWN_SUBJECT if peer is None else subject_of(peer)
        answer = self._first.answer(data, client, subject)
        if answer is None:
            return self._pass_on(accepted, address, peer)
        message, last = answer
        self._state.total_requests += 1
        try:
            accepted.recv(len(data))
            sent = accepted.send(message, _WITHOUT_WAITING)
        except BlockingIOError:
            sent = 0
        except OSError:  # the client has disconnected
            sent, last = len(message), True
        rest = message[sent:]
        if last and not rest:
            accepted.close()
        else:
            self._keep(accepted, address, peer, rest, last=last)
        return True

    def _unwelcome(self, accepted: socket.SocketType, address: Address) -> Refusal | None:
        """Return the refusal of a client that may not ask at all, or None if it may."""
        if not isinstance(address, tuple):
            return None
        if self._gate is not None and self._gate.is_outside(accepted):
            self._application.outsiders.note(address[0])
            return NOT_OF_THIS_MACHINE
        return NOT_A_CLIENT if self._application.outsiders.include(address[0], lambda: _local(accepted)) else None

    def _turn_away(self, accepted: socket.SocketType, address: Address, refusal: Refusal) -> bool:
        """Answer a refused client and close, and return True; or wait for its first bytes, and return False.

        An answer before the request resets the connection, and most clients then lose it. A few are waited for, outside
        the limit of connections, so that they take no place of others.
        """
        if _read(accepted, LONGEST_READ) or len(self._turned_away) >= MOST_TURNED_AWAY:
            _end(accepted, self._application.refuse(refusal, address[0]))
            return True
        connection = self._make_for(address, None)
        connection.turn_away(refusal)
        self._turned_away.add(connection)
        self._start_handover(accepted, connection)
        return False

    async def wait(self) -> None:
        """Wait until every connection that was taken is among the server's connections."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _pass_on(self, accepted: socket.SocketType, address: Address, peer: Peer | None = None) -> bool:
        """Pass on a connection from which nothing is read. Return whether it is refused instead."""
        connection = self._make_for(address, peer)
        admission = self._connection_limit.admit(connection, self._loop.time(), admin=self._admin)
        # Closing a socket with unread bytes resets it, and the client may lose the answer. So they are read first.
        if admission is not Admission.STAY and (_read(accepted, LONGEST_READ) or admission is Admission.CLOSE):
            self._connection_limit.leave(connection)
            self._refuse(accepted, address, peer)
            return True
        connection.admission = admission
        self._start_handover(accepted, connection)
        return False

    def _keep(
        self, accepted: socket.SocketType, address: Address, peer: Peer | None, rest: bytes, *, last: bool
    ) -> None:
        """Keep a connection whose first request is answered.

        If there are too many connections, it is treated as any idle one and closed, after the rest of the answer. With
        far too many, the rest is dropped.
        """
        connection = self._make_for(address, peer)
        admission = self._connection_limit.admit(connection, self._loop.time(), admin=self._admin)
        stays = admission is Admission.STAY
        if not stays and (admission is Admission.CLOSE or not rest):
            self._connection_limit.leave(connection)
            accepted.close()
            return
        connection.admission = Admission.STAY
        cast("FastPathConnection", connection).note_answer(rest, last=last or not stays)
        self._start_handover(accepted, connection)

    def _make_for(self, address: Address, peer: Peer | None) -> Connection:
        connection = self._make()
        connection.note_peer(peer)
        if isinstance(address, tuple):
            connection.client = (address[0], address[1])
        return connection

    def _start_handover(self, accepted: socket.SocketType, connection: Connection) -> None:
        accepted.setblocking(False)  # noqa: FBT003  # the standard library's signature
        task = self._loop.create_task(self._hand_over(_owned(accepted), connection))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _hand_over(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Reader(connection), accepted)
        except OSError:
            self._connection_limit.leave(connection)
            accepted.close()

    def _find(self, accepted: socket.SocketType, address: Address) -> Peer:
        return self._application.peers.find(accepted, (address[0], address[1]) if isinstance(address, tuple) else None)

    def _named(
        self, accepted: socket.SocketType, address: Address, peer: Peer | None
    ) -> tuple[Peer | None, Client | None]:
        """Return what is known of the peer, and the client as a connection with a transport would have it.

        It is looked up, unless it has been, if an observer uses its name.
        """
        known: Client | None = (address[0], address[1]) if isinstance(address, tuple) else None
        if not self._application.names_clients:
            return peer, known
        peer = peer or self._find(accepted, address)
        return peer, KnownClient(peer, known)

    def _refuse(self, accepted: socket.SocketType, address: Address, peer: Peer | None) -> None:
        """Answer and close in one step, without a transport, so that the descriptor is free at once."""
        _, client = self._named(accepted, address, peer)
        answer = self._application.refuse(TOO_MANY, description_of(client))
        _end(accepted, answer)


def _local(accepted: socket.SocketType) -> str:
    """Return the address at which a client is connected."""
    return str(accepted.getsockname()[0])


def _end(accepted: socket.SocketType, answer: bytes) -> None:
    """Send the answer, and close."""
    with contextlib.suppress(OSError):  # the client may have disconnected
        accepted.send(answer, _WITHOUT_WAITING)
    accepted.close()


def _owned(accepted: socket.SocketType) -> socket.socket:
    """Return an accepted connection for the event loop to own, and leave the given object without it.

    uvloop has its library close the descriptor. It detaches a `socket.socket` before; from the bare class under it, it
    closes the number once more, and by then that can be a descriptor which a thread has just opened.
    """
    if type(accepted) is socket.SocketType:
        return socket.socket(accepted.family, accepted.type, accepted.proto, accepted.detach())
    return cast("socket.socket", accepted)


def _read(accepted: socket.SocketType, most: int, flags: int = _WITHOUT_WAITING) -> bytes:
    """Read what the client has sent; return no bytes if nothing has arrived.

    The transport finds the end of its sending again, and the end after an error.
    """
    try:
        return accepted.recv(most, flags)
    except OSError:
        return b""
