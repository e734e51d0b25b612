"""The shapes of load: one target repeated, the same with differing heads, or many targets in turn.

Each of them over connections that stay, or over a new connection for each request.
"""

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
    ends: bool = False
    """Whether each request has a connection of its own, which ends with the response (`Connection: close`)."""

    def targets(self) -> list[str]:
        """Return every target that the load requests."""
        return [f"{INSTANCE}&n={number}" for number in range(self.entries)] if self.kind == "entries" else [INSTANCE]


REPEATED = Shape("repeated")
DIFFERING = Shape("differing")
ENDING = Shape("repeated", ends=True)
ENDING_DIFFERING = Shape("differing", ends=True)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round of load measured.

    `count` and `rate` (a second) are of responses; `p50_ms`, `p99_ms` and `longest_ms` are their times. `failed` counts
    statuses other than 2xx, broken connections and timeouts.
    """

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    failed: int
    busy: float = 0.0
    """The share of its core (0 to 1) that the load itself used."""
    processor_ms: float | None = None
    """The server's processor time for a thousand requests; None where the system does not account for it."""
