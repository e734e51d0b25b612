"""Hits per second on one core, their processor time, and memory after a million of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.effort import Effort
from benchmarks.figures import BARE, BenchmarkError, Figure
from benchmarks.loads import load
from benchmarks.loads.load import Load
from benchmarks.loads.shapes import CONNECTIONS, DIFFERING, REPEATED, Sample, Shape
from benchmarks.machine import procfs
from benchmarks.measures.rounds import rotated
from benchmarks.samples import median
from benchmarks.servers.arrivals import Arrivals, check_none
from benchmarks.servers.bench import Bench, Server, ask

_LONGEST_TOP_UP = 60
_TOLERATED_FAILURES = 0.001
_NEARLY = 0.9
_KINDS: Sequence[tuple[str, Shape, str]] = (
    ("hits", REPEATED, "repeated hits"),
    ("differing", DIFFERING, "hits, each with another head"),
)
_RSS = (
    "Resident memory (RSS) of all processes of a server. Each cache may hold 16 MiB, which HAProxy allocates at its "
    "start; nginx keeps its cache in files."
)


@dataclass(slots=True)
class _Measured:
    """What the rounds of one kind of load measured of one server.

    `more` counts the requests after the rounds, sent to reach the number after which memory is read.
    """

    samples: list[Sample] = field(default_factory=list)
    more: int = 0
    memory: procfs.Memory | None = None

    @property
    def processor(self) -> list[float]:
        return [sample.processor_ms for sample in self.samples if sample.processor_ms is not None]

    @property
    def count(self) -> int:
        return sum(sample.count for sample in self.samples) + self.more


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
            by_server = _rounds(chosen, shape, servers, effort)
            figures += _figures(name, words, by_server, f"{chosen.words}; bodies of {size:,} bytes.")
            memory += _memory_after(name, words, by_server, effort)
        check_none(arrivals)
    return figures + memory


def _rounds(chosen: Load, shape: Shape, servers: Sequence[Server], effort: Effort) -> dict[str, _Measured]:
    by_name = {server.name: server for server in servers}
    by_server = {name: _Measured() for name in by_name}
    for number in range(effort.load_rounds):
        for name in rotated(list(by_name), number):
            sample = chosen(by_name[name].running, shape, effort.load_seconds)
            if sample.failed > _TOLERATED_FAILURES * sample.count:
                raise BenchmarkError(f"under load, {sample.failed} of {sample.count} requests to {name} failed")
            by_server[name].samples.append(sample)
    for name, server in by_name.items():
        missing = effort.requests_for_memory - by_server[name].count
        if missing > 0:
            seconds = math.ceil(missing / by_server[name].samples[-1].rate)
            by_server[name].more = chosen(server.running, shape, min(seconds, _LONGEST_TOP_UP)).count
        by_server[name].memory = procfs.memory(server.running.pid)
    return by_server


def _figures(name: str, words: str, by_server: Mapping[str, _Measured], how: str) -> list[Figure]:
    busy = {server: median([sample.busy for sample in each.samples]) for server, each in by_server.items()}
    limited = [server for server, share in busy.items() if share >= load.NEARLY_ALL]
    shares = f"; with {BARE} it took {busy[BARE]:.0%} of its core" if busy.get(BARE) else ""
    note = f"{how[:-1]}{shares}."
    if limited:
        note += f" The load was the limit, so that the rate is a lower bound, for {', '.join(limited)}."
    for server, each in by_server.items():
        if failed := sum(sample.failed for sample in each.samples):
            note += f" {failed} requests to {server} failed."
    spread = ", ".join(
        f"{server} {min(rates):,.0f} to {max(rates):,.0f}"
        for server, rates in ((server, [sample.rate for sample in each.samples]) for server, each in by_server.items())
    )
    note += f" Lowest and highest round: {spread}."
    what = f"{words}, {CONNECTIONS} connections"
    return [
        Figure(
            name=f"{name}_per_second",
            what=f"{what}: a second",
            unit="/s",
            measured={server: median([sample.rate for sample in each.samples]) for server, each in by_server.items()},
            note=note,
        ),
        Figure(
            name=f"{name}_p50_ms",
            what=f"{what}: half within",
            unit="ms",
            measured={server: median([sample.p50_ms for sample in each.samples]) for server, each in by_server.items()},
        ),
        Figure(
            name=f"{name}_p99_ms",
            what=f"{what}: 99 of 100 within",
            unit="ms",
            measured={server: median([sample.p99_ms for sample in each.samples]) for server, each in by_server.items()},
        ),
        Figure(
            name=f"{name}_processor_ms",
            what=f"{words}: processor time for a thousand",
            unit="ms",
            measured={server: median(each.processor) for server, each in by_server.items() if each.processor},
        ),
    ]


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


def _memory_after(name: str, words: str, by_server: Mapping[str, _Measured], effort: Effort) -> list[Figure]:
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
