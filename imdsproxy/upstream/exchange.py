"""One HTTP/1.1 request over a connection of its own, and its response. Only this module imports h11.

h11 reads and writes bytes and knows no network; asyncio carries them. Nothing else is needed, because a connection is
never used twice, is never encrypted, and no redirect, cookie, credential or proxy of the environment applies.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import h11

from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Headers

_READ_AT_ONCE = 64 * 1024
# A head, or the line before a chunk, that is longer is refused.
_LONGEST_HEAD = 100 * 1024

ExchangeError = h11.ProtocolError
"""The request or the response is not HTTP. Its text may quote what came."""


class Exchange(AsyncIterator[bytes]):
    """An open connection. After `head`, iteration yields the parts of the body as they arrive.

    `head` and iteration raise `ExchangeError`, also if the connection ends before the response does, and OSError if
    the connection is lost.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD)

    def send(self, method: str, target: bytes, fields: Headers, body: bytes) -> None:
        """Send a request. Without a body, only a method that usually has one gets a Content-Length (RFC 9110, 8.6)."""
        length = [(b"content-length", str(len(body)).encode("ascii"))] if body or method != "GET" else []
        request = h11.Request(method=method, target=target, headers=[*fields, *length])
        events = [request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        # The response is read while this is sent, because a server may answer before it has read all.
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return the status and the fields of the response. Interim responses are skipped."""
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event.status_code, event.headers.raw_items()

    async def __anext__(self) -> bytes:
        """Return the next part of the body."""
        event = await self._event()
        if isinstance(event, h11.Data):
            return event.data
        raise StopAsyncIteration

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ_AT_ONCE))
        return event


async def connect(address: Address) -> Exchange:
    """Connect to an address. Raise OSError if that fails."""
    if address.unix is None:
        return Exchange(*await asyncio.open_connection(address.host, address.port))
    if sys.platform == "win32":
        raise OSError("Windows' event loop connects to no Unix socket")
    return Exchange(*await asyncio.open_unix_connection(address.unix))
