"""A server that writes the same bytes for any bytes it reads: the least that a server on uvloop can do.

The whole response, head and body, is read from standard input.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_BACKLOG = 4096


class _Bare(asyncio.Protocol):
    """Answers each read as if it were one request."""

    def __init__(self, response: bytes) -> None:
        self._response = response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write  # uvloop's own class, which does not inherit

    def data_received(self, _data: bytes) -> None:
        self._write(self._response)


async def _serve(response: bytes) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Bare(response), "127.0.0.1", 0, backlog=_BACKLOG)
    print(f"bare: http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve on a free port of 127.0.0.1 until a signal arrives; print the address."""
    uvloop.run(_serve(sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
