"""The vocabulary of a run: the servers, figures, curves, goals and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Bound = Literal["under", "at most", "at least"]
Unit = Literal["ms", "s", "/s", "MiB", "requests", "clients", "x"]

OURS = "imdsproxy"
NGINX = "nginx"
HAPROXY = "HAProxy"
VARNISH = "Varnish"
BARE = "bare uvloop"
PLAIN = "ASGI app"
DIRECT = "no proxy"

SERVERS = (OURS, NGINX, HAPROXY, VARNISH, BARE, PLAIN, DIRECT)
"""Every server, in the order of the columns."""

_COMPARED: frozenset[Unit] = frozenset({"ms", "s", "/s", "MiB"})


class BenchmarkError(Exception):
    """Why something could not be measured, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table: by server, the median of several rounds unless `what` says otherwise."""

    name: str
    what: str
    unit: Unit
    measured: Mapping[str, float]
    note: str = ""

    def ratio(self, server: str) -> float | None:
        """Return our figure divided by another server's, None if one is missing or the unit is not compared."""
        ours, theirs = self.measured.get(OURS), self.measured.get(server)
        if server in (OURS, DIRECT) or self.unit not in _COMPARED or ours is None or not theirs:
            return None
        return ours / theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Hits per second at each of the points, by server, as medians of rounds.

    `p99_ms` is the 99th percentile of the response times, and `longest_ms` the longest of all rounds. `processor_ms` is
    the processor time for a thousand hits; a server whose processor time is unknown is not in it.
    """

    name: str
    what: str
    along: str
    points: Sequence[int]
    rate: Mapping[str, Sequence[float]]
    p99_ms: Mapping[str, Sequence[float]]
    longest_ms: Mapping[str, Sequence[float]]
    processor_ms: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A goal, and what was measured for it."""

    what: str
    measured: float
    unit: Unit
    bound: Bound
    goal: float

    @property
    def missed(self) -> bool:
        """Whether the goal is missed."""
        match self.bound:
            case "under":
                return self.measured >= self.goal
            case "at most":
                return self.measured > self.goal
            case "at least":
                return self.measured < self.goal


@dataclass(slots=True)
class Findings:
    """All findings of a run; `left_out` has the reason for each server or part that was not measured."""

    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def figure(self, name: str) -> Figure | None:
        """Return the figure of this name, None if it was not measured."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def curve(self, name: str) -> Curve | None:
        """Return the curve of this name, None if it was not measured."""
        return next((curve for curve in self.curves if curve.name == name), None)
