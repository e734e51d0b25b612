"""Handle the new connections of one listener: refuse them if there are too many, or pass them to the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from imdsproxy.protocol.peer import UNKNOWN
from imdsproxy.server.connection import Connection
from imdsproxy.server.crowd import Admission, Crowd
from imdsproxy.server.listeners import process_at
from imdsproxy.server.parse_errors import TOO_MANY
from imdsproxy.server.reader import Reader

if TYPE_CHECKING:
    from imdsproxy.server.acceptor import Address
    from imdsproxy.server.application import Application

_READ = 65536


class Arrivals:
    """Takes the connections that an `Acceptor` accepts."""

    def __init__(
        self,
        application: Application,
        crowd: Crowd,
        make: Callable[[], Connection],
        loop: asyncio.AbstractEventLoop,
        *,
        admin: bool = False,
    ) -> None:
        """Serve the connections of one listener.

        Args:
            application: The application.
            crowd: The limit of connections.
            make: Returns a connection without a transport.
            loop: The event loop.
            admin: Whether it is the admin listener.
        """
        self._application = application
        self._crowd = crowd
        self._make = make
        self._loop = loop
        self._admin = admin
        self._under_way: set[asyncio.Task[None]] = set()

    def take(self, accepted: socket.socket, address: Address) -> bool:
        """Take a connection, and return whether it is served already."""
        accepted.setblocking(False)  # noqa: FBT003  # the standard library's signature
        connection = self._make()
        admission = self._crowd.admit(connection, self._loop.time(), admin=self._admin)
        if admission is not Admission.STAY and (_dropped(accepted) or admission is Admission.CLOSE):
            self._crowd.leave(connection)
            self._refuse(accepted, address)
            return True
        connection.admission = admission
        task = self._loop.create_task(self._hand_over(accepted, connection))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return False

    async def wait(self) -> None:
        """Wait until every connection that was taken is among the server's connections."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _hand_over(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Reader(connection), accepted)
        except OSError:
            self._crowd.leave(connection)
            accepted.close()

    def _refuse(self, accepted: socket.socket, address: Address) -> None:
        """Answer and close in one step, without a transport, so that the descriptor is free at once."""
        client = address[0] if isinstance(address, tuple) else (process_at(accepted) or UNKNOWN).name
        with accepted:
            try:
                accepted.send(self._application.refuse(TOO_MANY, client))
            except OSError:
                return  # the client has disconnected


def _dropped(accepted: socket.socket) -> bool:
    """Discard the bytes that the client has sent, and return whether there were any.

    Closing a socket with unread bytes resets it, and the client may lose the answer.
    """
    try:
        return bool(accepted.recv(_READ))
    except OSError:
        return False
