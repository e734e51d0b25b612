"""What is measured: figures with their goals, and how much work goes into each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Bound = Literal["under", "at most", "at least"]
Unit = Literal["ms", "s", "/s", "MiB", "requests"]


class BenchmarkError(Exception):
    """Why something could not be measured, in one line for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: the median of several rounds unless `what` says otherwise.

    `measured` is None where this system does not tell; `note` then says why.
    """

    name: str
    what: str
    measured: float | None
    unit: Unit
    beside: float | None = None
    beside_what: str = ""
    bound: Bound = "at most"
    goal: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether there is a goal, and it is not reached."""
        if self.measured is None or self.goal is None:
            return False
        match self.bound:
            case "under":
                return self.measured >= self.goal
            case "at most":
                return self.measured > self.goal
            case "at least":
                return self.measured < self.goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How many rounds each part has, and how long they are."""

    latency_rounds: int
    latency_requests: int
    load_rounds: int
    load_seconds: int
    miss_rounds: int
    miss_requests: int
    mixed_requests: int
    starts: int
    burst: int
    distinct: int


FULL = Effort(
    latency_rounds=7,
    latency_requests=1000,
    load_rounds=5,
    load_seconds=3,
    miss_rounds=7,
    miss_requests=200,
    mixed_requests=10_000,
    starts=7,
    burst=500,
    distinct=60,
)
QUICK = Effort(
    latency_rounds=3,
    latency_requests=200,
    load_rounds=1,
    load_seconds=1,
    miss_rounds=3,
    miss_requests=40,
    mixed_requests=2000,
    starts=2,
    burst=500,
    distinct=15,
)


def median(values: Sequence[float]) -> float:
    """Give the middle value; there is at least one."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that at least this share (0 to 1) of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
