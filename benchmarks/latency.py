"""What a hit takes, and what a miss adds to IMDS's own time, for one client that asks one thing after another."""

from __future__ import annotations

import itertools

from benchmarks.client import INSTANCE, Client
from benchmarks.figures import Effort, Figure, median, percentile
from benchmarks.processes import Bench

NO_WAIT = 0.001
"""A budget window, in seconds, so short that one client's misses never wait for a token: each takes longer.

The number of tokens stays at its default, since a budget's own work grows with that.
"""

_HIT_GOAL = 1.0
_MISS_GOAL = 3.0
_WARM_UP = 50
_DIRECT = "the emulator asked directly"


def hits(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure a hit, and in turn the same client at the emulator itself."""
    with (
        bench.emulator() as emulator,
        bench.proxy(emulator) as proxy,
        Client(emulator.port) as direct,
        Client(proxy.port) as through,
    ):
        for client in (direct, through):
            client.times([INSTANCE] * _WARM_UP)
        rounds = [
            [client.times([INSTANCE] * effort.latency_requests) for client in (direct, through)]
            for _ in range(effort.latency_rounds)
        ]
    figures = []
    for name, share, goal in (("p50", 0.5, _HIT_GOAL), ("p99", 0.99, None)):
        figures.append(
            Figure(
                name=f"hit_{name}_ms",
                what=f"a hit, {name}",
                measured=median([percentile(through_times, share) for _, through_times in rounds]),
                unit="ms",
                beside=median([percentile(direct_times, share) for direct_times, _ in rounds]),
                beside_what=_DIRECT,
                bound="under",
                goal=goal,
            )
        )
    return figures


def misses(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure distinct targets directly and through the proxy in turn, and take the difference."""
    number = itertools.count()

    def distinct(count: int) -> list[str]:
        return [f"{INSTANCE}&distinct={next(number)}" for _ in range(count)]

    with (
        bench.emulator() as emulator,
        bench.proxy(emulator, budget_window=NO_WAIT) as proxy,
        Client(emulator.port) as direct,
        Client(proxy.port) as through,
    ):
        for client in (direct, through):
            client.times(distinct(_WARM_UP))
        rounds = [
            [median(client.times(distinct(effort.miss_requests))) for client in (direct, through)]
            for _ in range(effort.miss_rounds)
        ]
    added = median([through_time - direct_time for direct_time, through_time in rounds])
    return [
        Figure(
            name="miss_adds_ms",
            what="what a miss adds to IMDS's own time",
            measured=added,
            unit="ms",
            beside=median([direct_time for direct_time, _ in rounds]),
            beside_what=_DIRECT,
            goal=_MISS_GOAL,
            note=f"The difference of medians, IMDSPROXY_BUDGET_WINDOW={NO_WAIT:g}, so that nothing waits for its turn; "
            "the emulator answers at once and shares the proxy's core.",
        )
    ]
