"""Whether a hit costs more with more connections, or with more entries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from benchmarks.effort import Effort
from benchmarks.figures import BARE, OURS, PLAIN, BenchmarkError, Curve
from benchmarks.loads import load
from benchmarks.loads.client import Client
from benchmarks.loads.shapes import CONNECTIONS, REPEATED, Sample, Shape
from benchmarks.measures.rounds import rotated
from benchmarks.samples import median
from benchmarks.servers import peers
from benchmarks.servers.arrivals import Arrivals, check_none
from benchmarks.servers.bench import NO_WAIT, Bench, Server

_MANY = 1000
_AT_ONCE = 8
# Each of the caches then holds ten thousand instance documents.
_MEGABYTES = 64
_EMPTY: Mapping[str, Mapping[str, Sequence[float]]] = {"rate": {}, "p99_ms": {}, "longest_ms": {}, "processor_ms": {}}


def connections(bench: Bench, effort: Effort) -> list[Curve]:
    """Measure repeated hits over an increasing number of connections."""
    chosen = load.choose()
    points = [point for point in effort.connections if point <= peers.connections(bench.files)]
    omitted = len(effort.connections) - len(points)
    why = f" {omitted} larger numbers are left out: a process may open only {bench.files:,} files." if omitted else ""
    with bench.emulator() as emulator, bench.all(emulator) as servers:
        arrivals = Arrivals(emulator)
        curve = _curve(
            lambda server, point: chosen(server.running, REPEATED, _seconds(point, effort), point),
            [server for server in servers if server.name != PLAIN],
            points,
            effort.curve_rounds,
            Curve(
                name="connections",
                what="repeated hits over connections",
                along="connections",
                points=points,
                **_EMPTY,
                note="All connections of a round begin at once, and each sends its next request as soon as it has its "
                "response. With 1,000 connections or more, a round takes two seconds instead of one; wrk opens its "
                f"connections in that time, too.{why}",
            ),
        )
        check_none(arrivals)
    return [curve]


def entries(bench: Bench, effort: Effort) -> list[Curve]:
    """Measure hits on an increasing number of entries in turn."""
    chosen = load.choose()
    most = Shape("entries", max(effort.entries))
    with bench.emulator() as emulator, bench.all(emulator, megabytes=_MEGABYTES, budget_window=NO_WAIT) as everyone:
        servers = [server for server in everyone if server.name != PLAIN]
        arrivals = Arrivals(emulator)
        measured = []
        for server in servers:
            if server.name in (OURS, BARE):
                may_fail: AbstractContextManager[None] = contextlib.nullcontext()
            else:
                may_fail = bench.or_left_out(f"{server.name} with {most.entries:,} entries")
            with may_fail:
                if server.name != BARE:
                    _fill(server, most.targets(), arrivals)
                measured.append(server)
        curve = _curve(
            lambda server, point: chosen(server.running, Shape("entries", point), effort.curve_seconds),
            measured,
            effort.entries,
            effort.curve_rounds,
            Curve(
                name="entries",
                what=f"hits that go over all entries in turn, {CONNECTIONS} connections",
                along="entries",
                points=effort.entries,
                **_EMPTY,
                note=f"Every cache holds {most.entries:,} entries; the load requests this many of them. {BARE} has no "
                "entries, and shows the limit of the load.",
            ),
        )
        check_none(arrivals)
    return [curve]


def _curve(
    measure: Callable[[Server, int], Sample],
    servers: Sequence[Server],
    points: Sequence[int],
    rounds: int,
    empty: Curve,
) -> Curve:
    by_name = {server.name: server for server in servers}
    samples: dict[str, list[list[Sample]]] = {name: [[] for _ in points] for name in by_name}
    for number in range(rounds):
        for at, point in enumerate(points):
            for name in rotated(list(by_name), number):
                samples[name][at].append(measure(by_name[name], point))
    failed = {name: sum(each.failed for at in rows for each in at) for name, rows in samples.items()}
    note = "".join(f" {count} requests to {name} failed." for name, count in failed.items() if count)
    with_processor_time = {
        name: rows for name, rows in samples.items() if all(each.processor_ms is not None for at in rows for each in at)
    }
    return replace(
        empty,
        rate=_medians(samples, lambda sample: sample.rate),
        p99_ms=_medians(samples, lambda sample: sample.p99_ms),
        longest_ms={name: [max(each.longest_ms for each in at) for at in rows] for name, rows in samples.items()},
        processor_ms=_medians(with_processor_time, lambda sample: sample.processor_ms or 0.0),
        note=empty.note + note,
    )


def _medians(
    samples: Mapping[str, Sequence[Sequence[Sample]]], value: Callable[[Sample], float]
) -> dict[str, list[float]]:
    return {name: [median([value(each) for each in at]) for at in rows] for name, rows in samples.items()}


def _seconds(point: int, effort: Effort) -> float:
    return effort.curve_seconds * (2 if point >= _MANY else 1)


def _fill(server: Server, targets: Sequence[str], arrivals: Arrivals) -> None:
    """Request each target once, then again, and raise BenchmarkError if one was not stored."""
    _ask_all(server, targets)
    arrivals.new()
    _ask_all(server, targets)
    if reached := len(arrivals.new()):
        raise BenchmarkError(f"{reached} of {len(targets)} entries were not stored")


def _ask_all(server: Server, targets: Sequence[str]) -> None:
    clients = [Client(server.port) for _ in range(_AT_ONCE)]
    try:
        for first in range(0, len(targets), _AT_ONCE):
            some = list(zip(clients, targets[first : first + _AT_ONCE], strict=False))
            for client, target in some:
                client.send(target)
            for client, target in some:
                client.receive(target)
    finally:
        for client in clients:
            client.close()
