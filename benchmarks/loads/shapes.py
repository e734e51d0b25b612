"""The shapes of load: one target repeated, the same with differing heads, or many targets in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.targets import INSTANCE

CONNECTIONS = 32
"""The number of connections unless a measure varies it."""

Kind = Literal["repeated", "differing", "entries"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a load requests; `entries` is the number of targets of the kind of the same name."""

    kind: Kind
    entries: int = 1

    def targets(self) -> list[str]:
        """Return every target that the load requests."""
        return [f"{INSTANCE}&n={number}" for number in range(self.entries)] if self.kind == "entries" else [INSTANCE]


REPEATED = Shape("repeated")
DIFFERING = Shape("differing")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round of load measured.

    `count` and `rate` (a second) are of responses; `p50_ms` and `p99_ms` are their times. `failed` counts statuses
    other than 2xx, broken connections and timeouts.
    """

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int
    busy: float = 0.0
    """The share of its core (0 to 1) that the load itself used."""
    processor_ms: float | None = None
    """The server's processor time for a thousand requests; None where the system does not account for it."""
