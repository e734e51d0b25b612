"""Requests as bytes over raw connections to the proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.loads.client import Response, read_response

HOST = b"Host: localhost\r\n"
TRUE = b"Metadata: true\r\n"
INSTANCE = b"/metadata/instance?api-version=2021-02-01"
EVENTS = b"/metadata/scheduledevents?api-version=2020-07-01"
TOKEN = b"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://%s"
_LIMIT = 4 << 20

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def get(target: bytes, *fields: bytes) -> bytes:
    """Return the bytes of a GET with these whole field lines in addition to Host and Metadata."""
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + TRUE + b"".join(fields) + b"\r\n"


@contextlib.asynccontextmanager
async def connected(to: int | Path) -> AsyncIterator[Connection]:
    """Connect to a port of 127.0.0.1 or to a Unix socket, and close the connection at the end."""
    if isinstance(to, Path):
        reader, writer = await asyncio.open_unix_connection(str(to), limit=_LIMIT)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", to, limit=_LIMIT)
    try:
        yield reader, writer
    finally:
        writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def exchange(connection: Connection, raw: bytes) -> Response:
    """Send one request, and read its response."""
    reader, writer = connection
    writer.write(raw)
    await writer.drain()
    return await read_response(reader)


async def ask(to: int | Path, raw: bytes) -> Response:
    """Send one request over a connection of its own."""
    async with connected(to) as connection:
        return await exchange(connection, raw)
