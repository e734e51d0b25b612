"""Whether a hit costs more where there are more connections, or more entries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from benchmarks import load, peers
from benchmarks.arrivals import Arrivals, check_none
from benchmarks.client import Client
from benchmarks.effort import Effort
from benchmarks.figures import BARE, OURS, PLAIN, BenchmarkError, Curve, in_turn, median
from benchmarks.load import CONNECTIONS, REPEATED, Sample, Shape
from benchmarks.servers import NO_WAIT, Bench, Server

_MANY = 1000
_AT_ONCE = 8
_SECONDS = 1
# Ten thousand instance documents have room in each of the caches.
_MEGABYTES = 64
_NOTHING: Mapping[str, Mapping[str, Sequence[float]]] = {"rate": {}, "p99_ms": {}, "processor_ms": {}}


def connections(bench: Bench, effort: Effort) -> list[Curve]:
    """Measure repeated hits over more and more connections."""
    chosen = load.choose()
    points = [point for point in effort.connections if point <= peers.connections(bench.files)]
    left = len(effort.connections) - len(points)
    few = f" {left} greater numbers are left out: a process may have only {bench.files:,} files open." if left else ""
    with bench.emulator() as emulator, bench.all(emulator) as servers:
        arrivals = Arrivals(emulator)
        curve = _curve(
            lambda server, point: chosen(server.running, REPEATED, _seconds(point), point),
            [server for server in servers if server.name != PLAIN],
            points,
            effort.curve_rounds,
            Curve(
                name="connections",
                what="repeated hits over connections",
                along="connections",
                points=points,
                **_NOTHING,
                note="From a thousand on, each round takes two seconds rather than one; wrk opens its connections in "
                f"that time, too.{few}",
            ),
        )
        check_none(arrivals)
    return [curve]


def entries(bench: Bench, effort: Effort) -> list[Curve]:
    """Measure hits that go over more and more entries in turn."""
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
            lambda server, point: chosen(server.running, Shape("entries", point), _SECONDS),
            measured,
            effort.entries,
            effort.curve_rounds,
            Curve(
                name="entries",
                what=f"hits that go over all entries in turn, {CONNECTIONS} connections",
                along="entries",
                points=effort.entries,
                **_NOTHING,
                note=f"All have {most.entries:,} entries; so many of them are asked for. {BARE} has none, and shows "
                "what the load can do.",
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
            for name in in_turn(list(by_name), number):
                samples[name][at].append(measure(by_name[name], point))
    failed = {name: sum(each.failed for at in told for each in at) for name, told in samples.items()}
    note = "".join(f" {count} requests to {name} failed." for name, count in failed.items() if count)
    told_of_processors = {
        name: told for name, told in samples.items() if all(each.processor_ms is not None for at in told for each in at)
    }
    return replace(
        empty,
        rate=_medians(samples, lambda sample: sample.rate),
        p99_ms=_medians(samples, lambda sample: sample.p99_ms),
        processor_ms=_medians(told_of_processors, lambda sample: sample.processor_ms or 0.0),
        note=empty.note + note,
    )


def _medians(
    samples: Mapping[str, Sequence[Sequence[Sample]]], value: Callable[[Sample], float]
) -> dict[str, list[float]]:
    return {name: [median([value(each) for each in at]) for at in told] for name, told in samples.items()}


def _seconds(point: int) -> int:
    return 2 if point >= _MANY else 1


def _fill(server: Server, targets: Sequence[str], arrivals: Arrivals) -> None:
    """Ask for each target once, and see that all are kept."""
    _ask_all(server, targets)
    arrivals.new()
    _ask_all(server, targets)
    if reached := len(arrivals.new()):
        raise BenchmarkError(f"{reached} of {len(targets)} entries were not kept")


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
