"""Summaries of many samples, for the benchmark and for the simulation."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

_WINDOW = 1.0


def median(values: Sequence[float]) -> float:
    """Return the median of at least one value."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the values that at least this share (0 to 1) of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def most_in_a_second(moments: Sequence[float]) -> int:
    """Return the largest number of the sorted moments that lie within one second.

    Two moments a whole second apart are not within one second.
    """
    most = 0
    recent: deque[float] = deque()
    for moment in moments:
        recent.append(moment)
        while moment - recent[0] >= _WINDOW:
            recent.popleft()
        most = max(most, len(recent))
    return most
