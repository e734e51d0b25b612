"""Clients that vanish, half-close and never read, by hundreds or thousands."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from tests.size import size
from tests.system.faults import documents
from tests.system.faults.run import POOL, Fault
from tests.system.faults.worlds import RealWorld

CLIENTS = size(short=300, full=3000)
_AT_ONCE = 100
_LITTLE = 4096
_numbers = itertools.count(1_000_000)


def _request(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n".encode()


async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for what only IMDS knows, and reset the connection before the answer."""
    writer.write(_request(f"{documents.NEW}{next(_numbers)}"))
    await asyncio.sleep(0.05)
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the sending side after the request. The answer is owed all the same, and then the end."""
    writer.write(_request(documents.INSTANCE))
    writer.write_eof()
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1


async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for a thousand answers, and read none."""
    writer.write(_request(documents.INSTANCE) * 1000)
    await asyncio.sleep(1.0)


def many(behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Any:
    """Return the trouble of many such clients, a hundred at a time, and at least for so many seconds."""

    async def trouble(world: RealWorld, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one() -> None:
            async with turns:
                raw = socket.socket()
                raw.settimeout(0)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
                await loop.sock_connect(raw, ("127.0.0.1", world.port))
                reader, writer = await asyncio.open_connection(sock=raw, limit=_LITTLE)
                try:
                    with contextlib.suppress(ConnectionError):
                        await behave(reader, writer)
                finally:
                    writer.transport.abort()

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        await asyncio.sleep(max(0.0, end - loop.time()))

    return trouble


_FLOOD: dict[str, Any] = {"seconds": (2.0, 5.0), "begins": "", "ends": ""}
FAULTS = (
    Fault("vanishing", "3,000 clients vanish before their answers", many(vanish), **_FLOOD, well_within=30.0),
    Fault("half-closing", "3,000 clients close their sending side early", many(half_close), **_FLOOD),
    Fault("not-reading", "3,000 clients read none of a thousand answers", many(never_read), **_FLOOD, growth=POOL),
)
