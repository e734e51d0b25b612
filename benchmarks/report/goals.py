"""The goals, by name of figure and curve. A goal for which nothing was measured is left out."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import BARE, HAPROXY, NGINX, OURS, VARNISH, Bound, Findings, Goal

_BESIDE: Sequence[tuple[str, str, Bound, float]] = (
    ("hits_per_second", HAPROXY, "at least", 1.0),
    ("hits_per_second", NGINX, "at least", 1.25),
    ("hits_per_second", VARNISH, "at least", 2.0),
    ("hits_per_second", BARE, "at least", 0.75),
    ("differing_per_second", NGINX, "at least", 1.0),
    ("ending_per_second", NGINX, "at least", 1.0),
    ("ending_per_second", HAPROXY, "at least", 1.0),
    ("ending_differing_per_second", NGINX, "at least", 1.0),
    ("ending_differing_per_second", HAPROXY, "at least", 1.0),
    ("hits_p99_ms", NGINX, "at most", 1.0),
)
_ALONE: Sequence[tuple[str, Bound, float]] = (
    ("hits_per_second", "at least", 15_000),
    ("hit_p50_ms", "under", 1.0),
    ("miss_adds_ms", "at most", 1.0),
    ("memory_at_rest_mib", "at most", 38.0),
    ("memory_after_mixed_mib", "at most", 48.0),
    ("start_s", "at most", 0.35),
    ("lookup_tcp_ms", "under", 0.01),
    ("storm_one_target_requests", "at most", 1),
    ("storm_most_in_a_second_requests", "at most", 5),
    ("cold_most_in_a_second_requests", "at most", 5),
    ("cold_refused_requests", "at most", 0),
    ("cold_gave_up_clients", "at most", 0),
)
_FEW = 32
_CROWD = 1000
"""The fewest connections that are a crowd if they begin at once."""
_LONGEST_MS = 300.0
_FLAT = 0.8
"""The smallest share of the rate with one entry that any number of entries may leave.

It is below 1, because the caches of a processor and the noise of a round are not costs of the entries.
"""


def reached(findings: Findings) -> list[Goal]:
    """Return each goal with what was measured for it."""
    return [*_beside(findings), *_alone(findings), *_flat(findings), *_growth(findings), *_crowds(findings)]


def _beside(findings: Findings) -> list[Goal]:
    goals = []
    for name, server, bound, goal in _BESIDE:
        figure = findings.figure(name)
        ratio = None if figure is None else figure.ratio(server)
        if figure is not None and ratio is not None:
            words = f"{figure.what}, beside {server}"
            goals.append(Goal(what=words, measured=ratio, unit="x", bound=bound, goal=goal))
    return goals


def _alone(findings: Findings) -> list[Goal]:
    goals = []
    for name, bound, goal in _ALONE:
        figure = findings.figure(name)
        if figure is not None and OURS in figure.measured:
            measured = figure.measured[OURS]
            goals.append(Goal(what=figure.what, measured=measured, unit=figure.unit, bound=bound, goal=goal))
    return goals


def _flat(findings: Findings) -> list[Goal]:
    curve = findings.curve("entries")
    if curve is None or OURS not in curve.rate:
        return []
    rates = curve.rate[OURS]
    words = f"hits with up to {curve.points[-1]:,} entries, the lowest rate beside that with one"
    return [Goal(what=words, measured=min(rates) / rates[0], unit="x", bound="at least", goal=_FLAT)]


def _growth(findings: Findings) -> list[Goal]:
    """Compare the growth with that of nginx, because many sockets cost every server more."""
    curve = findings.curve("connections")
    if curve is None or not {OURS, NGINX} <= curve.processor_ms.keys() or _FEW not in curve.points:
        return []
    at = curve.points.index(_FEW)
    ours, theirs = (curve.processor_ms[name][-1] / curve.processor_ms[name][at] for name in (OURS, NGINX))
    words = f"processor time for a hit, its growth from {_FEW} to {curve.points[-1]:,} connections, beside {NGINX}'s"
    return [Goal(what=words, measured=ours / theirs, unit="x", bound="at most", goal=1.0)]


def _crowds(findings: Findings) -> list[Goal]:
    """Compare crowds of connections that begin at once: 99 of 100 responses with nginx's, the longest with a bound."""
    curve = findings.curve("connections")
    if curve is None or OURS not in curve.p99_ms:
        return []
    goals = []
    for at, point in enumerate(curve.points):
        if point >= _CROWD:
            words = f"{point:,} connections that begin at once"
            if theirs := curve.p99_ms.get(NGINX):
                ratio = curve.p99_ms[OURS][at] / theirs[at]
                what = f"{words}: 99 of 100 within, beside {NGINX}"
                goals.append(Goal(what=what, measured=ratio, unit="x", bound="at most", goal=2.0))
            longest = curve.longest_ms[OURS][at]
            goals.append(
                Goal(what=f"{words}: the longest", measured=longest, unit="ms", bound="under", goal=_LONGEST_MS)
            )
    return goals
