"""What is measured: figures by server, curves along a quantity, and what is to be reached."""

from __future__ import annotations

import math
import statistics
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
"""Everything that is measured, in the order of the table's columns."""

_COMPARED: frozenset[Unit] = frozenset({"ms", "s", "/s", "MiB"})


class BenchmarkError(Exception):
    """Why something could not be measured, in one line for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: the median of several rounds unless `what` says otherwise, by server."""

    name: str
    what: str
    unit: Unit
    measured: Mapping[str, float]
    note: str = ""

    def ratio(self, server: str) -> float | None:
        """Give our figure divided by a peer's; None where there is nothing to divide."""
        ours, theirs = self.measured.get(OURS), self.measured.get(server)
        if server in (OURS, DIRECT) or self.unit not in _COMPARED or ours is None or not theirs:
            return None
        return ours / theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Hits per second, by server at each of the points, and what they cost; medians of rounds.

    `p99_ms` is what 99 of 100 take, `processor_ms` the processor time for a thousand: empty where that is not told.
    """

    name: str
    what: str
    along: str
    points: Sequence[int]
    rate: Mapping[str, Sequence[float]]
    p99_ms: Mapping[str, Sequence[float]]
    processor_ms: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is to be reached, beside what was measured."""

    what: str
    measured: float
    unit: Unit
    bound: Bound
    goal: float

    @property
    def missed(self) -> bool:
        """Whether it is not reached."""
        match self.bound:
            case "under":
                return self.measured >= self.goal
            case "at most":
                return self.measured > self.goal
            case "at least":
                return self.measured < self.goal


@dataclass(slots=True)
class Findings:
    """All that a run has found; `left_out` says for each server that is not in it why."""

    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def figure(self, name: str) -> Figure | None:
        """Give the figure of this name, if it was measured."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def curve(self, name: str) -> Curve | None:
        """Give the curve of this name, if it was measured."""
        return next((curve for curve in self.curves if curve.name == name), None)


def median(values: Sequence[float]) -> float:
    """Give the middle value; there is at least one."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that at least this share (0 to 1) of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """Give the order of a round: each begins with another, so that none always comes after the same one."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]
