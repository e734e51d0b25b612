"""What the proxy takes of a machine: memory, and time to start."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from benchmarks.client import INSTANCE, Client
from benchmarks.figures import BenchmarkError, Effort, Figure, median
from benchmarks.latency import NO_WAIT
from benchmarks.processes import TOLD_NOWHERE, Bench, Running

_MEMORY_GOAL = 48.0
_START_GOAL = 1.0
_CLIENTS = 32
_ONE_MISS_IN = 10
_REPEATED = (
    INSTANCE,
    "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text",
    "/metadata/instance/network?api-version=2021-02-01",
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net",
)


def memory(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure resident memory when ready, and once thousands of requests were served."""
    count = effort.mixed_requests
    with bench.plain() as plain:
        _until_healthy(plain)
        beside = plain.resident_mebibytes()
    with bench.emulator() as emulator, bench.proxy(emulator, budget_window=NO_WAIT) as proxy:
        at_start = proxy.resident_mebibytes()
        _ask_mixed(proxy, count)
        after = proxy.resident_mebibytes()
    return [
        Figure(
            name="memory_at_start_mib",
            what="resident memory when ready",
            measured=at_start,
            unit="MiB",
            beside=beside,
            beside_what="a plain ASGI application",
            goal=_MEMORY_GOAL,
            note="" if at_start else TOLD_NOWHERE,
        ),
        Figure(
            name="memory_after_requests_mib",
            what=f"resident memory after {count:,} requests",
            measured=after,
            unit="MiB",
            beside=at_start,
            beside_what="when ready",
            goal=_MEMORY_GOAL,
            note=f"{_CLIENTS} connections, one request in {_ONE_MISS_IN} a miss." if after else TOLD_NOWHERE,
        ),
    ]


def starts(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure in turn how long the proxy and a plain application take from their start to the first answer."""
    ours, bare = [], []
    with bench.emulator() as emulator:
        for _ in range(effort.starts):
            with bench.proxy(emulator, until_ready=False) as proxy:
                ours.append(_until_healthy(proxy))
            with bench.plain() as plain:
                bare.append(_until_healthy(plain))
    return [
        Figure(
            name="start_s",
            what="process start to the first 200 of /-/healthy",
            measured=median(ours),
            unit="s",
            beside=median(bare),
            beside_what="a plain ASGI application",
            goal=_START_GOAL,
        )
    ]


def _until_healthy(server: Running) -> float:
    with Client(server.port) as client:
        status = client.get("/-/healthy").status
    if status != 200:
        raise BenchmarkError(f"/-/healthy was answered with {status}")
    return time.perf_counter() - server.began


def _ask_mixed(proxy: Running, count: int) -> None:
    with contextlib.ExitStack() as stack:
        clients: Sequence[Client] = [stack.enter_context(Client(proxy.port)) for _ in range(_CLIENTS)]
        for number in range(count):
            repeated = _REPEATED[number % len(_REPEATED)]
            target = repeated if number % _ONE_MISS_IN else f"{INSTANCE}&distinct={number}"
            clients[number % _CLIENTS].times([target])
