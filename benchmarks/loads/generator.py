"""The source of the load if wrk is not installed. It is slower than wrk, so its rates are lower bounds.

`python -m benchmarks.loads.generator PORT repeated|differing|entries ENTRIES stays|ends CONNECTIONS SECONDS` prints a
JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
import uuid
from collections.abc import Iterator
from typing import cast

import uvicorn

from benchmarks.figures import BenchmarkError
from benchmarks.loads.client import head, read_response, request
from benchmarks.loads.shapes import Kind, Shape
from benchmarks.samples import percentile
from benchmarks.targets import INSTANCE

_CONNECT_TIMEOUT = 10.0


def requests(port: int, shape: Shape) -> Iterator[bytes]:
    """Yield the bytes of one request after another, without end."""
    end = b"Connection: close\r\n\r\n" if shape.ends else b"\r\n"
    if shape.kind != "differing":
        yield from itertools.cycle([request(port, target)[:-2] + end for target in shape.targets()])
    plain = request(port, INSTANCE).removesuffix(b"\r\n")
    # Counting from the clock gives each run heads that no earlier run has sent.
    for number in itertools.count(time.time_ns()):
        yield b"%sx-ms-client-request-id: %s\r\ntraceparent: 00-%032x-%016x-01\r\n%s" % (
            plain,
            str(uuid.UUID(int=number)).encode("ascii"),
            number,
            number,
            end,
        )


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as it has the response to the last one."""

    def __init__(self, wanted: Iterator[bytes], times: list[float]) -> None:
        self.failed = 0
        self._wanted = wanted
        self._times = times
        self._sent = 0.0
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which does not inherit
        self._send(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        known = head(self._received)
        if known is None or len(self._received) < known[1] or self._transport is None:
            return
        self._received.clear()
        self._times.append(time.perf_counter() - self._sent)
        self.failed += known[0] != 200
        self._send(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.failed += self._transport is not None
        self._transport = None

    def _send(self, transport: asyncio.Transport) -> None:
        self._sent = time.perf_counter()
        transport.write(next(self._wanted))

    def end(self) -> None:
        """Stop sending, and abort the connection."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


async def _load_ending(port: int, shape: Shape, connections: int, seconds: float) -> dict[str, float]:
    """Load with clients that connect for each request."""
    wanted, times, failed = requests(port, shape), list[float](), 0

    async def ask() -> None:
        nonlocal failed
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                began = time.perf_counter()
                writer.write(next(wanted))
                response = await read_response(reader)
                times.append(time.perf_counter() - began)
                failed += response.status != 200
                writer.close()
            except (OSError, EOFError, BenchmarkError):
                failed += 1

    began = time.perf_counter()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(ask() for _ in range(connections)))
    return _sample(times, time.perf_counter() - began, failed)


async def _load(port: int, shape: Shape, connections: int, seconds: float) -> dict[str, float]:
    """Load over connections that stay."""
    loop = asyncio.get_running_loop()
    wanted, times = requests(port, shape), list[float]()
    async with asyncio.timeout(_CONNECT_TIMEOUT):
        pairs = [
            await loop.create_connection(lambda: _Connection(wanted, times), "127.0.0.1", port)
            for _ in range(connections)
        ]
    times.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    counted = list(times)
    taken = time.perf_counter() - began
    failed = sum(protocol.failed for _transport, protocol in pairs)
    for _transport, protocol in pairs:
        protocol.end()
    return _sample(counted, taken, failed)


def _sample(times: list[float], taken: float, failed: int) -> dict[str, float]:
    p50, p99, longest = (percentile(times, share) * 1000 if times else 0.0 for share in (0.5, 0.99, 1.0))
    rate = len(times) / taken
    return {
        "count": len(times),
        "rate": rate,
        "p50_ms": p50,
        "p99_ms": p99,
        "longest_ms": longest,
        "failed": failed,
    }


def main() -> int:
    """Load a server on this machine, and print the sample as JSON."""
    port, kind, entries, kept, connections, seconds = sys.argv[1:]
    shape = Shape(cast("Kind", kind), int(entries), ends=kept == "ends")
    load = _load_ending if shape.ends else _load
    factory = uvicorn.Config("").get_loop_factory()  # uvloop where it is installed
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(load(int(port), shape, int(connections), float(seconds)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
