"""Hits per second on one core, their processor time, and memory after a million of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.effort import Effort
from benchmarks.figures import Figure
from benchmarks.loads import load
from benchmarks.loads.load import Load
from benchmarks.loads.shapes import CONNECTIONS, DIFFERING, REPEATED, Shape
from benchmarks.machine import procfs
from benchmarks.measures import sustained
from benchmarks.measures.sustained import Measured
from benchmarks.servers.arrivals import Arrivals, check_none
from benchmarks.servers.bench import Bench, Server, ask

_LONGEST_TOP_UP = 60
_NEARLY = 0.9
_KINDS: Sequence[tuple[str, Shape, str]] = (
    ("hits", REPEATED, "repeated hits"),
    ("differing", DIFFERING, "hits, each with another head"),
)
_RSS = (
    "Resident memory (RSS) of all processes of a server. Each cache may hold 16 MiB, which HAProxy allocates at its "
    "start; nginx keeps its cache in files."
)


def hits(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure all servers in turn on repeated hits, then on hits whose heads differ."""
    chosen = load.choose()
    figures: list[Figure] = []
    memory: list[Figure] = []
    with bench.emulator() as emulator, bench.all(emulator) as servers:
        size = len(ask(servers[0].running).body)
        arrivals = Arrivals(emulator)
        memory += _memory_at_rest(servers)
        for name, shape, words in _KINDS:
            by_server = sustained.rounds(chosen, shape, servers, effort)
            _top_up(chosen, shape, servers, by_server, effort)
            what = f"{words}, {CONNECTIONS} connections"
            figures += sustained.figures(name, words, what, by_server, f"{chosen.words}; bodies of {size:,} bytes.")
            memory += _memory_after(name, words, by_server, effort)
        check_none(arrivals)
    return figures + memory


def _top_up(
    chosen: Load, shape: Shape, servers: Sequence[Server], by_server: Mapping[str, Measured], effort: Effort
) -> None:
    """Send the requests that are missing to the number after which memory is read, and read it."""
    for server in servers:
        measured = by_server[server.name]
        missing = effort.requests_for_memory - measured.count
        if missing > 0:
            seconds = math.ceil(missing / measured.samples[-1].rate)
            measured.more = chosen(server.running, shape, min(seconds, _LONGEST_TOP_UP)).count
        measured.memory = procfs.memory(server.running.pid)


def _memory_at_rest(servers: Sequence[Server]) -> list[Figure]:
    by_server = {server.name: server.rest for server in servers if server.rest is not None}
    shares = {name: each.proportional for name, each in by_server.items() if each.proportional is not None}
    return [
        Figure(
            name="memory_at_rest_mib",
            what="memory at rest",
            unit="MiB",
            measured={name: each.resident for name, each in by_server.items()},
            note=_RSS,
        ),
        Figure(
            name="memory_at_rest_pss_mib",
            what="memory at rest, less what it has in common with other processes",
            unit="MiB",
            measured=shares,
            note="Proportional memory (PSS): a shared page is divided among the processes that map it; the emulator "
            "and the benchmark are Python programs as well.",
        ),
    ]


def _memory_after(name: str, words: str, by_server: Mapping[str, Measured], effort: Effort) -> list[Figure]:
    fewer = "".join(
        f" {server} had only {each.count:,}, for lack of time."
        for server, each in by_server.items()
        if each.count < _NEARLY * effort.requests_for_memory
    )
    return [
        Figure(
            name=f"memory_after_{name}_mib",
            what=f"memory after {effort.requests_for_memory:,} {words}",
            unit="MiB",
            measured={server: each.memory.resident for server, each in by_server.items() if each.memory is not None},
            note=f"Each process serves the repeated hits first, then the others; at least that many of each.{fewer}",
        )
    ]
