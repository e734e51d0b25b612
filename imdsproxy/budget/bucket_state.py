"""The state of a permit bucket: what is known of each permit, and the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

NO_LOAN = 0
"""The holder of the permits that are not lent."""


@dataclass(slots=True)
class State:
    """The state of a budget. Times are monotonic seconds."""

    requests: int
    window: float
    rests_from: list[float] = field(default_factory=list)
    """For each permit, when it was released, or the end of its lease while it is lent."""
    holders: list[int] = field(default_factory=list)
    """For each permit, the number of its loan, or NO_LOAN."""
    lent_at: list[float] = field(default_factory=list)
    """For each permit, when it was last lent."""
    held: float = 0.0
    """The running mean of how long a request held its permit."""
    blocked_until: float = -math.inf
    rate: float = 1.0
    """The share of the full rate at the time of the last 429 ..."""
    rate_at: float = -math.inf
    """... and that time."""

    def __post_init__(self) -> None:
        if not self.rests_from:
            self.rests_from = [-math.inf] * self.requests
            self.holders = [NO_LOAN] * self.requests
            self.lent_at = [-math.inf] * self.requests


def resized(state: State, requests: int, window: float, now: float) -> State:
    """Return the state with another size. Surplus permits are those that return first; new ones rest from now."""
    kept = sorted(zip(state.rests_from, state.holders, state.lent_at, strict=True), reverse=True)[:requests]
    kept += [(now, NO_LOAN, -math.inf)] * (requests - len(kept))
    return replace(
        state,
        requests=requests,
        window=window,
        rests_from=[rests_from for rests_from, _, _ in kept],
        holders=[holder for _, holder, _ in kept],
        lent_at=[lent_at for _, _, lent_at in kept],
    )
