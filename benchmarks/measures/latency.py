"""The latency of a hit, and what a miss adds to the time of IMDS, for one client with one request at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from benchmarks.effort import Effort
from benchmarks.figures import DIRECT, Figure
from benchmarks.loads.client import Client
from benchmarks.measures.rounds import rotated
from benchmarks.samples import median, percentile
from benchmarks.servers.bench import NO_WAIT, Bench, Server, with_direct
from benchmarks.targets import INSTANCE

_WARM_UP = 50


def hits(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure the latency of a hit for one client at every server, and of the emulator itself."""
    with bench.emulator() as emulator, bench.all(emulator) as servers:
        rounds = _rounds(
            with_direct(servers, emulator),
            effort.latency_rounds,
            lambda: itertools.repeat(INSTANCE),
            effort.latency_requests,
        )
    return [
        Figure(
            name=f"hit_{name}_ms",
            what=f"a hit, one client: {words} within",
            unit="ms",
            measured={server: median([percentile(times, share) for times in each]) for server, each in rounds.items()},
        )
        for name, share, words in (("p50", 0.5, "half"), ("p99", 0.99, "99 of 100"))
    ]


def misses(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure distinct targets directly and through every cache in turn, and return the differences."""
    numbers = itertools.count()

    def distinct() -> Iterator[str]:
        return (f"{INSTANCE}&distinct={next(numbers)}" for _ in itertools.count())

    with bench.emulator() as emulator, bench.caches(emulator, budget_window=NO_WAIT) as servers:
        rounds = _rounds(with_direct(servers, emulator), effort.miss_rounds, distinct, effort.miss_requests)
    medians = {server: [median(times) for times in each] for server, each in rounds.items()}
    direct = medians.pop(DIRECT)
    added = {
        server: median([through - alone for through, alone in zip(times, direct, strict=True)])
        for server, times in medians.items()
    }
    return [
        Figure(
            name="miss_adds_ms",
            what=f"what a miss adds to IMDS's own time ({DIRECT}: that time)",
            unit="ms",
            measured={**added, DIRECT: median(direct)},
            note=f"The difference of medians, IMDSPROXY_BUDGET_WINDOW={NO_WAIT:g}, so that nothing waits for a permit; "
            "the emulator answers at once and shares the servers' core.",
        )
    ]


def _rounds(
    servers: Sequence[Server], rounds: int, targets: Callable[[], Iterator[str]], count: int
) -> dict[str, list[list[float]]]:
    """Return the milliseconds of each request, by server, in a list for each round. All servers take turns."""
    by_server: dict[str, list[list[float]]] = {server.name: [] for server in servers}
    with contextlib.ExitStack() as stack:
        clients = {server.name: stack.enter_context(Client(server.port)) for server in servers}
        for client in clients.values():
            client.times(itertools.islice(targets(), _WARM_UP))
        for number in range(rounds):
            for name in rotated(list(clients), number):
                by_server[name].append(clients[name].times(itertools.islice(targets(), count)))
    return by_server
