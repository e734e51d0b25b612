"""A trouble with a beginning and an end, so that the log has one line for each, however often the trouble shows.

The rules, all in monotonic seconds:

1. The first sign of trouble begins an episode. Every further one is only counted.
2. An episode ends with the first good sign, or after it: once the trouble has not shown for `settle` seconds.
3. Some troubles have no good sign, such as a full budget. They end by settling alone.
4. An episode that begins within `RETURNS_WITHIN` seconds of the end of another one ends only after that many quiet
   seconds. A trouble that comes and goes therefore writes two pairs of lines at first, and then none until it is over.
5. An episode without any sign for `FORGOTTEN_AFTER` seconds ends as forgotten, because nothing asks any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

RETURNS_WITHIN = 60.0
FORGOTTEN_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class Event:
    """The beginning or the end of a trouble: one line of the log."""

    message: str
    fields: Mapping[str, object]
    over: bool = False
    """Whether it is the end."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An episode that has ended."""

    seconds: float
    """From the first sign of trouble to the good sign, or to the last sign of trouble if there was no good one."""
    count: int
    """The signs of trouble."""
    forgotten: bool
    """Whether it ended without a good sign, because nothing was heard of it any more."""


class Episode:
    """One trouble, which may begin and end many times."""

    __slots__ = ("_bad_at", "_began", "_count", "_ended_at", "_good_at", "_passes", "_returned", "_settle")

    def __init__(self, settle: float = 0.0, *, passes: bool = False) -> None:
        """Make an episode that has not begun.

        Args:
            settle: The seconds without trouble before an end.
            passes: Whether the trouble has no good sign.
        """
        self._settle = settle
        self._passes = passes
        self._began: float | None = None
        self._bad_at = -math.inf
        self._good_at: float | None = None
        self._count = 0
        self._ended_at = -math.inf
        self._returned = False

    @property
    def under_way(self) -> bool:
        """Whether it has begun and not ended."""
        return self._began is not None

    @property
    def due(self) -> float:
        """The moment at which it ends if nothing shows until then; infinity if it is not under way."""
        if self._began is None:
            return math.inf
        if self._good_at is None:
            return self._bad_at + FORGOTTEN_AFTER
        quiet = max(self._settle, RETURNS_WITHIN if self._returned else 0.0)
        return max(self._good_at, self._bad_at + quiet)

    def trouble(self, now: float) -> bool:
        """Note a sign of trouble, and return whether it begins an episode."""
        begins = self._began is None
        if begins:
            self._began = now
            self._count = 0
            self._returned = now - self._ended_at < RETURNS_WITHIN
        self._count += 1
        self._bad_at = now
        self._good_at = now if self._passes else None
        return begins

    def good(self, now: float) -> None:
        """Note a good sign."""
        if self._good_at is None:
            self._good_at = now

    def end(self, now: float) -> Ended | None:
        """End the episode if it is due, and return how it was; otherwise return None."""
        if self._began is None or now < self.due:
            return None
        forgotten = self._good_at is None
        until = self._bad_at if self._good_at is None else self._good_at
        ended = Ended(until - self._began, self._count, forgotten)
        self._began = self._good_at = None
        self._ended_at = now
        return ended


def seconds(value: float) -> float:
    """Return a duration as it is logged."""
    return round(value, 1)
