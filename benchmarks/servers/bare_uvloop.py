"""A server that writes the same bytes for any bytes it reads: the least that a server on uvloop can do.

The whole response, head and body, is read from standard input. With the argument `closing` it closes each connection
after one response.
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


class _BareClosing(_Bare):
    """Closes the connection after its first answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._close = transport.close

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._close()


async def _serve(response: bytes, way: type[_Bare]) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: way(response), "127.0.0.1", 0, backlog=_BACKLOG)
    print(f"bare: http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve on a free port of 127.0.0.1 until a signal arrives; print the address."""
    way = _BareClosing if sys.argv[1:] == ["closing"] else _Bare
    uvloop.run(_serve(sys.stdin.buffer.read(), way))


if __name__ == "__main__":
    main()
