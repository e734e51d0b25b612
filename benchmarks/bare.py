"""A process to compare with: the least that a server of uvloop can do, which is to write the same bytes for any bytes.

The whole answer, head and body, is what comes on standard input.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_BACKLOG = 4096


class _Bare(asyncio.Protocol):
    """Takes whatever comes at once for one request."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write  # uvloop's own class, which does not inherit

    def data_received(self, _data: bytes) -> None:
        self._write(self._answer)


async def _serve(answer: bytes) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Bare(answer), "127.0.0.1", 0, backlog=_BACKLOG)
    print(f"bare: http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve on a free port of 127.0.0.1, and say which, until a signal ends it."""
    uvloop.run(_serve(sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
