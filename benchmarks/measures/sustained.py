"""Rounds of sustained load on all servers in turn, and the figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.effort import Effort
from benchmarks.figures import BARE, BenchmarkError, Figure
from benchmarks.loads import load
from benchmarks.loads.load import Load
from benchmarks.loads.shapes import Sample, Shape
from benchmarks.machine import procfs
from benchmarks.measures.rounds import rotated
from benchmarks.samples import median
from benchmarks.servers.bench import Server

_TOLERATED_FAILURES = 0.001


@dataclass(slots=True)
class Measured:
    """What the rounds of one kind of load measured of one server.

    `more` counts the requests after the rounds, sent to reach the number after which memory is read.
    """

    samples: list[Sample] = field(default_factory=list)
    more: int = 0
    memory: procfs.Memory | None = None

    @property
    def processor(self) -> list[float]:
        """The processor time for a thousand requests in each round for which it is known."""
        return [sample.processor_ms for sample in self.samples if sample.processor_ms is not None]

    @property
    def count(self) -> int:
        """All requests."""
        return sum(sample.count for sample in self.samples) + self.more


def rounds(chosen: Load, shape: Shape, servers: Sequence[Server], effort: Effort) -> dict[str, Measured]:
    """Load all servers in turn, in rounds.

    Raises:
        BenchmarkError: Too many requests to a server failed.
    """
    by_name = {server.name: server for server in servers}
    by_server = {name: Measured() for name in by_name}
    for number in range(effort.load_rounds):
        for name in rotated(list(by_name), number):
            sample = chosen(by_name[name].running, shape, effort.load_seconds)
            if sample.failed > _TOLERATED_FAILURES * sample.count:
                raise BenchmarkError(f"under load, {sample.failed} of {sample.count} requests to {name} failed")
            by_server[name].samples.append(sample)
    return by_server


def figures(name: str, words: str, what: str, by_server: Mapping[str, Measured], how: str) -> list[Figure]:
    """Return the rates, times and processor time that rounds have measured.

    Args:
        name: The beginning of the figures' names.
        words: What was requested.
        what: The same, with the number of connections.
        by_server: What was measured.
        how: The source of the load, and what else the note says.
    """
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
