"""Read from connections in small pieces, in turn."""

from __future__ import annotations

import asyncio

from imdsproxy.server.connection import Connection

LONGEST_READ = 16_384
"""The maximum bytes of one read, so that one client can neither block the loop nor fill the memory."""

# All connections share one buffer, because both event loops fill it and pass it on in one step.
_BUFFER = memoryview(bytearray(LONGEST_READ))


class Reader(asyncio.BufferedProtocol):
    """Reads for one connection, at most `LONGEST_READ` bytes at a time."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection."""
        self._connection.connection_made(transport)  # type: ignore[arg-type]  # as uvicorn's

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into."""
        del sizehint
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what was read. After a full read there is probably more, so other connections come first."""
        connection = self._connection
        if nbytes == LONGEST_READ:
            connection.flow.yield_turn(connection.loop)
        connection.data_received(_BUFFER[:nbytes].tobytes())

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
