"""The load where wrk is not installed, in a process of its own: slower than wrk, so that its figure is a lower bound.

`python -m benchmarks.generator PORT CONNECTIONS SECONDS TARGET` prints how many answers came, and how many in a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

import uvicorn

from benchmarks.client import head, request

_CONNECT = 10.0


class _Connection(asyncio.Protocol):
    """Asks again as soon as it is answered."""

    def __init__(self, raw: bytes) -> None:
        self.answered = 0
        self.failed = 0
        self._raw = raw
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which does not inherit
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        self._received += data
        known = head(self._received)
        if known is None or len(self._received) < known[1] or self._transport is None:
            return
        self._received.clear()
        self.answered += 1
        self.failed += known[0] != 200
        self._transport.write(self._raw)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.failed += self._transport is not None
        self._transport = None

    def end(self) -> None:
        """Ask no more."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


async def _load(port: int, connections: int, seconds: float, target: str) -> tuple[int, float, int]:
    loop = asyncio.get_running_loop()
    raw = request(port, target)
    async with asyncio.timeout(_CONNECT):
        pairs = [await loop.create_connection(lambda: _Connection(raw), "127.0.0.1", port) for _ in range(connections)]
    protocols = [protocol for _transport, protocol in pairs]
    before = sum(protocol.answered for protocol in protocols)
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    answered = sum(protocol.answered for protocol in protocols) - before
    taken = time.perf_counter() - began
    failed = sum(protocol.failed for protocol in protocols)
    for protocol in protocols:
        protocol.end()
    return answered, answered / taken, failed


def main() -> int:
    """Load a server of this machine; status 1 where an answer was no 200."""
    port, connections, seconds, target = sys.argv[1:]
    factory = uvicorn.Config("").get_loop_factory()  # uvloop where it is installed
    with asyncio.Runner(loop_factory=factory) as runner:
        answered, rate, failed = runner.run(_load(int(port), int(connections), float(seconds), target))
    if failed or not answered:
        sys.stderr.write(f"{failed} requests were not answered with 200\n" if failed else "nothing was answered\n")
        return 1
    print(answered, rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
