"""Handle the new connections of one listener: answer or refuse them at once, or pass them to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

from imdsproxy.records import Client
from imdsproxy.server.connection import Connection
from imdsproxy.server.crowd import Admission, Crowd
from imdsproxy.server.first_request import LONGEST_FIRST, FirstRequests
from imdsproxy.server.listeners import process_at
from imdsproxy.server.parse_errors import TOO_MANY
from imdsproxy.server.reader import Reader
from imdsproxy.server.served import Served

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from imdsproxy.server.acceptor import Address
    from imdsproxy.server.fast_path import FastPathConnection

_READ = 65536


class _Begun(NamedTuple):
    """The answer to a first request, after as much of it as possible was sent."""

    rest: bytes
    """The part that did not fit in the socket's buffer."""
    last: bool
    """Whether the connection ends with it."""


class Arrivals:
    """Takes the connections that an `Acceptor` accepts."""

    def __init__(  # noqa: PLR0913  # the parts it joins, all by name
        self,
        *,
        application: Served,
        crowd: Crowd,
        make: Callable[[], Connection],
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        first: FirstRequests | None,
        admin: bool = False,
    ) -> None:
        """Serve the connections of one listener.

        Args:
            application: The application.
            crowd: The limit of connections.
            make: Returns a connection without a transport.
            state: uvicorn's state, which counts requests.
            loop: The event loop.
            first: Answers first requests; None if none may be answered before there is a transport.
            admin: Whether it is the admin listener.
        """
        self._application = application
        self._crowd = crowd
        self._make = make
        self._state = state
        self._loop = loop
        self._first = first
        self._admin = admin
        self._under_way: set[asyncio.Task[None]] = set()

    def take(self, accepted: socket.socket, address: Address) -> bool:
        """Take a connection, and return whether its first request is served already."""
        accepted.setblocking(False)  # noqa: FBT003  # the standard library's signature
        begun = self._answer(accepted, address)
        if begun is not None and begun.last and not begun.rest:
            accepted.close()
            return True
        connection = self._make()
        admission = self._crowd.admit(connection, self._loop.time(), admin=self._admin)
        if begun is not None:
            return self._keep(accepted, connection, begun, admission)
        if admission is not Admission.STAY and (_dropped(accepted) or admission is Admission.CLOSE):
            self._crowd.leave(connection)
            self._refuse(accepted, address)
            return True
        connection.admission = admission
        self._start_handover(accepted, connection)
        return False

    async def wait(self) -> None:
        """Wait until every connection that was taken is among the server's connections."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _answer(self, accepted: socket.socket, address: Address) -> _Begun | None:
        """Answer the first request if it has arrived and is a fresh hit. Everything else stays unread."""
        if self._first is None:
            return None
        try:
            data = accepted.recv(LONGEST_FIRST + 1, socket.MSG_PEEK)
        except OSError:
            return None  # nothing has arrived, or the client has disconnected, and the transport will find out
        if not 0 < len(data) <= LONGEST_FIRST:
            return None
        client = _client(accepted, address) if self._application.names_clients else None
        answer = self._first.answer(data, client)
        if answer is None:
            return None
        self._state.total_requests += 1
        try:
            accepted.recv(len(data))
            sent = accepted.send(answer.message)
        except BlockingIOError:
            sent = 0
        except OSError:
            return _Begun(b"", last=True)  # the client has disconnected
        return _Begun(answer.message[sent:], answer.last)

    def _keep(self, accepted: socket.socket, connection: Connection, begun: _Begun, admission: Admission) -> bool:
        """Keep a connection whose first request is answered, and return True.

        If there are too many connections, it is treated as any idle one and closed, after the rest of the answer. With
        far too many, the rest is dropped.
        """
        stays = admission is Admission.STAY
        if not stays and (admission is Admission.CLOSE or not begun.rest):
            self._crowd.leave(connection)
            accepted.close()
            return True
        connection.admission = Admission.STAY
        cast("FastPathConnection", connection).note_answer(begun.rest, last=begun.last or not stays)
        self._start_handover(accepted, connection)
        return True

    def _start_handover(self, accepted: socket.socket, connection: Connection) -> None:
        task = self._loop.create_task(self._hand_over(accepted, connection))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _hand_over(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Reader(connection), accepted)
        except OSError:
            self._crowd.leave(connection)
            accepted.close()

    def _refuse(self, accepted: socket.socket, address: Address) -> None:
        """Answer and close in one step, without a transport, so that the descriptor is free at once."""
        client = _client(accepted, address)
        answer = self._application.refuse(TOO_MANY, client[0] if client else "-")
        with accepted, contextlib.suppress(OSError):  # the client may have disconnected
            accepted.send(answer)


def _client(accepted: socket.socket, address: Address) -> Client | None:
    """Return the client as a connection with a transport would have it."""
    if isinstance(address, tuple):
        return address[0], address[1]
    peer = process_at(accepted)
    return None if peer is None else (peer.name, 0)


def _dropped(accepted: socket.socket) -> bool:
    """Discard the bytes that the client has sent, and return whether there were any.

    Closing a socket with unread bytes resets it, and the client may lose the answer.
    """
    try:
        return bool(accepted.recv(_READ))
    except OSError:
        return False
