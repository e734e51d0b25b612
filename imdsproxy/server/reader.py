"""Read from connections in small pieces, in turn."""

from __future__ import annotations

import asyncio

from imdsproxy.server.connection import Connection
from imdsproxy.server.read_buffer import BUFFER


class Reader(asyncio.BufferedProtocol):
    """Reads for one connection, at most `LONGEST_READ` bytes at a time."""

    __slots__ = ("_connection", "buffer_updated")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # The event loop calls the connection itself: a method here would take a tenth of the time of a known head.
        self.buffer_updated = connection.buffer_updated  # type: ignore[method-assign]  # of the same signature

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection."""
        self._connection.connection_made(transport)  # type: ignore[arg-type]  # as uvicorn's

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into."""
        del sizehint
        return BUFFER

    def eof_received(self) -> bool:
        """Return whether the connection stays open."""
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that the client reads more slowly than the proxy writes."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has caught up."""
        self._connection.resume_writing()
