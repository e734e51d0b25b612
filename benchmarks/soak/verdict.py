"""The verdict of a run, as functions of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.samples import most_in_a_second
from benchmarks.soak.outcomes import Ledger

MIB = 2**20
BUDGET = 5
"""The requests that may reach IMDS in any second."""
GROWTH_PER_HOUR = 4 * MIB
"""Bytes of growth an hour that are no leak. `docs/reliability.md` has the reason."""
SHORTEST_FIT = 300.0
"""Seconds below which memory that grows is the warm-up, and no slope is judged."""
_FEWEST_POINTS = 4
_MORE_THREADS = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """The proxy at one moment; `at` is in seconds since the start of the run, memory in bytes.

    Attributes:
        rest: Whether there was no flood, and time to end what the last one left.
        connections: Open connections of clients, None if the proxy did not answer.
    """

    at: float
    resident: int
    proportional: int
    descriptors: int
    threads: int
    connections: int | None = None
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict; `passed` is None if it could not be judged, and `why` says so."""

    name: str
    passed: bool | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that the verdict depends on.

    Attributes:
        samples: In the order of time.
        base: The proxy before the first client.
        end: The proxy after the last client.
        peak: The most resident memory, in bytes.
        bound: The stated bound of memory, in bytes.
        arrivals: The moments at which requests reached IMDS, in seconds.
        ledger: The outcomes of clients.
        lost: Requests that were given up without an answer or still waited at the end, by client.
        used: The clients that took part.
        log: The lines of the proxy's log that are faults.
    """

    samples: Sequence[Sample]
    base: Sample
    end: Sample
    peak: int
    bound: int
    arrivals: Sequence[float]
    ledger: Ledger
    lost: Mapping[str, int]
    used: Collection[str]
    log: Sequence[str]


def judge(measured: Measured) -> list[Check]:
    """Return the lines of the verdict. The run has passed if no line has `passed` False."""
    return [
        growth(measured.samples),
        peak(measured.peak, measured.bound),
        descriptors(measured.base, measured.end),
        threads(measured.samples, measured.end),
        worst_second(measured.arrivals),
        errors(measured.ledger),
        log(measured.log),
        answered(measured.ledger, measured.lost, measured.used),
    ]


def passed(checks: Sequence[Check]) -> bool:
    """Return whether no check failed."""
    return all(check.passed is not False for check in checks)


def growth(samples: Sequence[Sample]) -> Check:
    """Judge the growth of memory by the slope over the second half of the run.

    Only samples at rest count, because floods fill and empty buffers. The slope is the median of the slopes between all
    pairs of rests (Theil and Sen), so that a few high ones have no effect.
    """
    points = _points([sample for sample in samples if sample.at >= (samples[-1].at / 2)]) if samples else []
    seconds = points[-1][0] - points[0][0] if points else 0.0
    if len(points) < _FEWEST_POINTS or seconds < SHORTEST_FIT:
        text = f"not judged: {len(points)} rests within {seconds:.0f} s of the second half"
        return Check("memory slope", passed=None, why=f"{text}; it takes {_FEWEST_POINTS}, and {SHORTEST_FIT:.0f} s")
    per_hour = slope(points) * 3600
    return Check(
        "memory slope",
        per_hour <= GROWTH_PER_HOUR,
        f"{per_hour / MIB:+.2f} MiB an hour over {len(points)} rests of the second half; at most "
        f"{GROWTH_PER_HOUR / MIB:.0f}",
    )


def _points(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Return the time and the median memory of each rest."""
    rests: list[list[Sample]] = []
    before: Sample | None = None
    for sample in samples:
        if sample.rest and before is not None and before.rest and rests:
            rests[-1].append(sample)
        elif sample.rest:
            rests.append([sample])
        before = sample
    return [(rest[0].at, statistics.median(sample.resident for sample in rest)) for rest in rests]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points, 0 for less than two."""
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(points)
        for later in points[number + 1 :]
        if later[0] > earlier[0]
    ]
    return statistics.median(slopes) if slopes else 0.0


def peak(most: int, bound: int) -> Check:
    """Judge the most memory that was resident."""
    return Check("memory peak", most < bound, f"{most / MIB:.1f} MiB; stated bound {bound / MIB:.1f} MiB")


def descriptors(base: Sample, end: Sample) -> Check:
    """Judge the descriptors after the last client: there must be as many as before the first."""
    return Check(
        "descriptors", end.descriptors <= base.descriptors, f"{base.descriptors} before, {end.descriptors} after"
    )


def threads(samples: Sequence[Sample], end: Sample) -> Check:
    """Judge the threads after the last client.

    A pool starts its threads when they are needed, so the first rest counts, and two more are allowed.
    """
    first = next((sample.threads for sample in samples if sample.rest), end.threads)
    return Check(
        "threads", end.threads <= first + _MORE_THREADS, f"{first} at the first rest, {end.threads} at the end"
    )


def worst_second(arrivals: Sequence[float]) -> Check:
    """Judge how many requests reached IMDS in the fullest second."""
    most = most_in_a_second(sorted(arrivals))
    return Check("requests at IMDS in a second", most <= BUDGET, f"at most {most} of {len(arrivals)}; allowed {BUDGET}")


def errors(ledger: Ledger) -> Check:
    """Judge the outcomes of clients."""
    if not ledger.unexpected:
        return Check("errors", passed=True, why=f"none unexpected in {sum(ledger.started.values())} requests")
    listed = "; ".join(
        f"{count} x {client}: {outcome}{f' ({detail})' if (detail := ledger.details.get((client, outcome))) else ''}"
        for (client, outcome), count in ledger.unexpected.most_common()
    )
    return Check("errors", passed=False, why=listed)


def log(lines: Sequence[str]) -> Check:
    """Judge the log of the proxy."""
    return Check("log", not lines, f"{len(lines)} lines of faults: {lines[0].strip()}" if lines else "no traceback")


def answered(ledger: Ledger, lost: Mapping[str, int], used: Collection[str]) -> Check:
    """Judge whether every client that took part was answered, and every request has ended."""
    silent = sorted(client for client in used if not ledger.answered(client))
    waiting = [f"{count} x {client}" for client, count in sorted(lost.items()) if count]
    if silent or waiting:
        parts = [f"never answered: {', '.join(silent)}"] * bool(silent) + [f"no end: {', '.join(waiting)}"] * bool(
            waiting
        )
        return Check("answers", passed=False, why="; ".join(parts))
    return Check("answers", passed=True, why=f"all {len(used)} clients were answered, and no request was left")
