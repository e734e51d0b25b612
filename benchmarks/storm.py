"""Many clients at once: for one target, and each for another within the default budget."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from benchmarks.client import INSTANCE, Client, head, request
from benchmarks.figures import BenchmarkError, Effort, Figure
from benchmarks.processes import Bench, Running

_BUDGET = 5
_WINDOW = 1.0
_MAX_WAIT = 30
# Long enough that all of a burst has come before the first answer has.
_LATENCY = 0.2
_TIMEOUT = 60.0


def one_target(bench: Bench, effort: Effort) -> list[Figure]:
    """Count what reaches IMDS when many ask for the same at once."""
    with bench.emulator(_LATENCY) as emulator, bench.proxy(emulator) as proxy:
        taken = asyncio.run(_at_once(proxy.port, [INSTANCE] * effort.burst))
        arrived = len(_arrivals(emulator))
    return [
        Figure(
            name="storm_one_target_requests",
            what=f"{effort.burst} clients at once, one target: requests to IMDS",
            measured=arrived,
            unit="requests",
            beside=effort.burst,
            beside_what="without the proxy",
            goal=1,
            note=f"All {effort.burst} were answered 200 within {taken:.2f} s, of which IMDS took {_LATENCY:g} s.",
        )
    ]


def distinct_targets(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure how long distinct targets take within the default budget, and whether it is kept."""
    targets = [f"{INSTANCE}&distinct={number}" for number in range(effort.distinct)]
    with bench.emulator() as emulator, bench.proxy(emulator, max_wait=_MAX_WAIT) as proxy:
        time.sleep(_WINDOW)  # the token that getting ready took is back by then
        taken = asyncio.run(_at_once(proxy.port, targets))
        moments = _arrivals(emulator)
    if len(moments) < len(targets):
        raise BenchmarkError(f"{len(targets)} distinct targets made {len(moments)} requests to the emulator")
    clients = f"{effort.distinct} clients at once, {effort.distinct} targets"
    return [
        Figure(
            name="storm_distinct_s",
            what=f"{clients}: all answered after",
            measured=taken,
            unit="s",
            beside=(math.ceil(effort.distinct / _BUDGET) - 1) * _WINDOW,
            beside_what=f"the least that {_BUDGET} a second allow",
            note=f"The default budget, IMDSPROXY_MAX_WAIT={_MAX_WAIT}; one run.",
        ),
        Figure(
            name="storm_most_in_a_second_requests",
            what=f"{clients}: most arrivals in any second",
            measured=_most_in_a_second(moments),
            unit="requests",
            goal=_BUDGET,
        ),
    ]


async def _at_once(port: int, targets: Sequence[str]) -> float:
    """Send all requests, each over an open connection of its own; gives the seconds until all are answered 200."""
    async with asyncio.timeout(_TIMEOUT):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in targets]
        try:
            began = time.perf_counter()
            for (_, writer), target in zip(streams, targets, strict=True):
                writer.write(request(port, target))
            statuses = await asyncio.gather(*(_status(reader) for reader, _ in streams))
            taken = time.perf_counter() - began
        finally:
            for _, writer in streams:
                writer.close()
    others = [status for status in statuses if status != 200]
    if others:
        raise BenchmarkError(f"{len(others)} of {len(statuses)} requests of a storm were not answered 200: {others[0]}")
    return taken


async def _status(reader: asyncio.StreamReader) -> int:
    received = await reader.readuntil(b"\r\n\r\n")
    known = head(received)
    assert known is not None
    status, size = known
    await reader.readexactly(size - len(received))
    return status


def _arrivals(emulator: Running) -> list[float]:
    """Give the moments, in seconds, at which requests for the instance document came, the oldest first."""
    with Client(emulator.port) as client:
        arrivals = client.document("/-/arrivals")
    return sorted(arrival["at"] for arrival in arrivals if arrival["target"].startswith(INSTANCE))


def _most_in_a_second(moments: Sequence[float]) -> int:
    return max(sum(1 for later in moments if 0 <= later - moment < _WINDOW) for moment in moments)
