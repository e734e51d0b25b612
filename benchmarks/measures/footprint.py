"""The time to start, and memory after thousands of requests for different targets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from benchmarks.effort import Effort
from benchmarks.figures import BARE, OURS, PLAIN, Figure
from benchmarks.loads.client import Client
from benchmarks.machine import procfs
from benchmarks.machine.processes import Running
from benchmarks.measures.rounds import rotated
from benchmarks.samples import median
from benchmarks.servers.bench import NO_WAIT, Bench, ask
from benchmarks.servers.peers import PEERS
from benchmarks.targets import INSTANCE, token

_CLIENTS = 32
_ONE_MISS_IN = 10
_REPEATED = (
    INSTANCE,
    "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text",
    "/metadata/instance/network?api-version=2021-02-01",
    token("vault"),
)


def mixed(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure the memory of the proxy after thousands of hits and misses."""
    count = effort.mixed_requests
    with bench.emulator() as emulator, bench.proxy(emulator, budget_window=NO_WAIT) as proxy:
        _ask_mixed(proxy, count)
        after = procfs.memory(proxy.pid)
    return [
        Figure(
            name="memory_after_mixed_mib",
            what=f"memory after {count:,} requests, {100 // _ONE_MISS_IN} of 100 misses",
            unit="MiB",
            measured={} if after is None else {OURS: after.resident},
            note=f"{_CLIENTS} connections; every miss adds an entry; the cache has its default size.",
        )
    ]


def starts(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure, for all servers in turn, the time from the start of the process to the first response."""
    taken: dict[str, list[float]] = {}
    with bench.emulator() as emulator:
        response = ask(emulator)
        names = [OURS, *(peer.name for peer in PEERS), BARE, PLAIN]
        by_name = {peer.name: peer for peer in PEERS}

        def started(name: str) -> AbstractContextManager[Running]:
            if name in by_name:
                return bench.peer(by_name[name], emulator)
            if name == BARE:
                return bench.bare_uvloop(response.raw)
            return bench.asgi_app(response.body) if name == PLAIN else bench.starting_proxy(emulator)

        for number in range(effort.starts):
            for name in rotated(names, number):
                with contextlib.nullcontext() if name == OURS else bench.or_left_out(name), started(name) as server:
                    ask(server)
                    taken.setdefault(name, []).append(time.perf_counter() - server.began)
    return [
        Figure(
            name="start_s",
            what="from the start of the process to the first answer",
            unit="s",
            measured={name: median(times) for name, times in taken.items()},
            note="The first response is the instance document, which all but the last two fetch from the emulator.",
        )
    ]


def _ask_mixed(proxy: Running, count: int) -> None:
    with contextlib.ExitStack() as stack:
        clients: Sequence[Client] = [stack.enter_context(Client(proxy.port)) for _ in range(_CLIENTS)]
        for number in range(count):
            repeated = _REPEATED[number % len(_REPEATED)]
            target = repeated if number % _ONE_MISS_IN else f"{INSTANCE}&distinct={number}"
            clients[number % _CLIENTS].times([target])
