"""Many clients at once: all for one target, and each for another target within the default budget."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from benchmarks.effort import Effort
from benchmarks.figures import DIRECT, OURS, BenchmarkError, Figure
from benchmarks.loads.client import read_response, request
from benchmarks.samples import most_in_a_second
from benchmarks.servers.arrivals import Arrivals
from benchmarks.servers.bench import Bench
from benchmarks.servers.peers import PEERS
from benchmarks.targets import INSTANCE

_BUDGET = 5
_WINDOW = 1.0
_MAX_WAIT = 30
# Longer than a burst takes to arrive, so that all of it waits for the first response.
_LATENCY = 0.2
_TIMEOUT = 60.0


def one_target(bench: Bench, effort: Effort) -> list[Figure]:
    """Count the requests that reach IMDS when many clients request one target at once."""
    reached = {DIRECT: float(effort.burst)}
    targets = [INSTANCE] * effort.burst
    taken = 0.0
    with bench.emulator(_LATENCY) as emulator:
        arrivals = Arrivals(emulator)
        with bench.proxy(emulator) as proxy:
            taken = asyncio.run(_at_once(proxy.port, targets))
            reached[OURS] = len(arrivals.new())
        for peer in PEERS:
            with bench.or_left_out(peer.name), bench.peer(peer, emulator) as server:
                asyncio.run(_at_once(server.port, targets))
                reached[peer.name] = len(arrivals.new())
    return [
        Figure(
            name="storm_one_target_requests",
            what=f"{effort.burst} clients at once, one target: requests to IMDS",
            unit="requests",
            measured=reached,
            note=f"IMDS takes {_LATENCY:g} s and has no limit. All of imdsproxy's clients were answered 200 within "
            f"{taken:.2f} s.",
        )
    ]


def distinct_targets(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure how long distinct targets take within the default budget, and whether the budget holds."""
    targets = [f"{INSTANCE}&distinct={number}" for number in range(effort.distinct)]
    with bench.emulator() as emulator, bench.proxy(emulator, max_wait=_MAX_WAIT) as proxy:
        time.sleep(_WINDOW)  # the permit of the readiness check returns in that time
        arrivals = Arrivals(emulator)
        taken = asyncio.run(_at_once(proxy.port, targets))
        moments = [arrival.at for arrival in arrivals.new()]
    if len(moments) < len(targets):
        raise BenchmarkError(f"{len(targets)} distinct targets made {len(moments)} requests to the emulator")
    clients = f"{effort.distinct} clients at once, {effort.distinct} targets"
    least = (math.ceil(effort.distinct / _BUDGET) - 1) * _WINDOW
    return [
        Figure(
            name="storm_distinct_s",
            what=f"{clients}: all answered after",
            unit="s",
            measured={OURS: taken},
            note=f"{_BUDGET} a second allow no less than {least:g} s. The default budget, "
            f"IMDSPROXY_MAX_WAIT={_MAX_WAIT}; one run.",
        ),
        Figure(
            name="storm_most_in_a_second_requests",
            what=f"{clients}: most arrivals in any second",
            unit="requests",
            measured={OURS: most_in_a_second(moments)},
        ),
    ]


async def _at_once(port: int, targets: Sequence[str]) -> float:
    """Send all requests at once over open connections, and return the seconds until all have a response.

    Raises:
        BenchmarkError: A status was not 200.
    """
    async with asyncio.timeout(_TIMEOUT):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in targets]
        try:
            began = time.perf_counter()
            for (_, writer), target in zip(streams, targets, strict=True):
                writer.write(request(port, target))
            answers = await asyncio.gather(*(read_response(reader) for reader, _ in streams))
            taken = time.perf_counter() - began
        finally:
            for _, writer in streams:
                writer.close()
    others = [answer.status for answer in answers if answer.status != 200]
    if others:
        raise BenchmarkError(f"{len(others)} of {len(answers)} requests of a storm were not answered 200: {others[0]}")
    return taken
