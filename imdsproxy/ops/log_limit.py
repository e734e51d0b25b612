"""A limit for log lines that clients can cause as often as they like."""

from __future__ import annotations

from collections.abc import Hashable

INTERVAL = 5.0
"""Seconds between two lines from one place in the code."""


class RepeatLimit:
    """Admits one line per place and interval, and counts the omitted lines."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self._interval = interval
        self._places: dict[Hashable, tuple[float, int]] = {}  # when the last line was admitted, and how many were not

    def admit(self, place: Hashable, now: float) -> int | None:
        """Return how many lines were omitted before this one, or None if this line must be omitted too.

        `now` is monotonic, in seconds.
        """
        admitted_at, left_out = self._places.get(place, (-self._interval, 0))
        if now - admitted_at < self._interval:
            self._places[place] = (admitted_at, left_out + 1)
            return None
        self._places[place] = (now, 0)
        return left_out
